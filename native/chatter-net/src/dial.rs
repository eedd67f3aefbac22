//! Dials a neighbour at the addresses that its name was resolved to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chatter_core::dialer::NeighbourId;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::driver::Input;
use crate::establish::{EstablishError, Origin, adopt, initiate, tune};
use crate::node::Node;
use crate::transport::{Connection, connect_local};

/// How long a connection may take to be there, the handshake apart: a try that began while the way was
/// cut should not outlive the cut by much. The system repeats a lost SYN after a second, within this.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_200);

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
        let mut socket = connect(node, address).await?;
        tune(&socket)?;
        let established = initiate(node, socket.as_handshaking(), dial_seq).await?;
        Ok::<_, EstablishError>((socket, established))
    };
    let (socket, established) = timeout(node.config.handshake_timeout, handshake)
        .await
        .map_err(|_| EstablishError::Timeout)??;
    let origin = Origin { remote: address, dialled: Some((neighbour, dial_seq)) };
    adopt(node, socket, established, origin).await
}

async fn connect(node: &Node, address: SocketAddr) -> Result<Connection, EstablishError> {
    if node.config.unix_sockets
        && let Some(socket) = connect_local(address).await
    {
        return Ok(socket);
    }
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    Ok(Connection::Tcp(connected.map_err(|_| EstablishError::Unreachable)??))
}
