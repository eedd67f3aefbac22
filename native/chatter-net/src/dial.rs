//! Dials a neighbour at the addresses that its name was resolved to.
//!
//! Addresses are tried side by side, each a little later than the one before (RFC 8305): an address
//! where nobody answers delays nobody. The first that completes the handshake becomes the link.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chatter_core::crypto::Established;
use chatter_core::dialer::NeighbourId;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::driver::Input;
use crate::establish::{EstablishError, Origin, adopt, initiate, tune};
use crate::node::Node;
use crate::transport::{Connection, connect_local};

/// How long a connection may take to be there, the handshake apart: a try that began while the way was
/// cut should not outlive the cut by much. The system repeats a lost SYN after a second, within this.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_200);

/// How much later the next address is tried.
const STAGGER: Duration = Duration::from_millis(100);

/// Addresses tried at most.
const MAX_ADDRESSES: usize = 16;

type Attempt = (SocketAddr, Result<(Connection, Established), EstablishError>);

/// Tries `addresses` until one becomes a link; tells the control plane if none does.
pub(crate) async fn run(
    node: Arc<Node>,
    neighbour: NeighbourId,
    dial_seq: u64,
    addresses: Vec<SocketAddr>,
) {
    let mut attempts = JoinSet::new();
    for (n, address) in addresses.into_iter().take(MAX_ADDRESSES).enumerate() {
        let delay = STAGGER * n as u32;
        attempts.spawn(attempt(node.clone(), dial_seq, address, delay));
    }
    while let Some(attempt) = attempts.join_next().await {
        let Ok((address, result)) = attempt else { continue };
        let adopted = match result {
            Ok((socket, established)) => {
                let origin = Origin { remote: address, dialled: Some((neighbour, dial_seq)) };
                adopt(&node, socket, established, origin).await
            }
            Err(error) => Err(error),
        };
        match adopted {
            // The others end with the set.
            Ok(()) => return,
            Err(error) => node.complain(address, &error, true),
        }
    }
    node.control.send(Input::DialFailed(neighbour)).await.ok();
    node.host.dial_failed(neighbour);
}

async fn attempt(node: Arc<Node>, dial_seq: u64, address: SocketAddr, delay: Duration) -> Attempt {
    sleep(delay).await;
    let handshake = async {
        let mut socket = connect(&node, address).await?;
        tune(&socket)?;
        let established = initiate(&node, socket.as_handshaking(), dial_seq).await?;
        Ok((socket, established))
    };
    let result = timeout(node.config.handshake_timeout, handshake).await;
    (address, result.unwrap_or(Err(EstablishError::Timeout)))
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
