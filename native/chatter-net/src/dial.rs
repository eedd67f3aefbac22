//! Dials a neighbour at the addresses that its name was resolved to.

use std::net::SocketAddr;
use std::sync::Arc;

use chatter_core::dialer::NeighbourId;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::driver::Input;
use crate::establish::{EstablishError, Origin, adopt, initiate, tune};
use crate::node::Node;

/// Tries `addresses` in turn until one becomes a link; tells the control plane if none does.
pub(crate) async fn run(
    node: Arc<Node>,
    neighbour: NeighbourId,
    dial_seq: u64,
    addresses: Vec<SocketAddr>,
) {
    for address in addresses {
        match one(&node, neighbour, dial_seq, address).await {
            Ok(()) => return,
            Err(error) => node.complain(address, &error, true),
        }
    }
    node.control.send(Input::DialFailed(neighbour)).await.ok();
    node.host.dial_failed(neighbour);
}

async fn one(
    node: &Arc<Node>,
    neighbour: NeighbourId,
    dial_seq: u64,
    address: SocketAddr,
) -> Result<(), EstablishError> {
    let handshake = async {
        let mut stream = TcpStream::connect(address).await?;
        tune(&stream)?;
        let established = initiate(node, &mut stream, dial_seq).await?;
        Ok::<_, EstablishError>((stream, established))
    };
    let (stream, established) = timeout(node.config.handshake_timeout, handshake)
        .await
        .map_err(|_| EstablishError::Timeout)??;
    let origin = Origin { remote: address, dialled: Some((neighbour, dial_seq)) };
    adopt(node, stream, established, origin).await
}
