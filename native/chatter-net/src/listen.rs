//! Listens for other nodes, and for strangers: bounds how many handshakes are half open and for how
//! long, and evicts the oldest for a new one, so that those who never finish cannot keep others out.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::config::ListenPort;
use crate::establish::{EstablishError, Origin, adopt, respond, tune};
use crate::node::Node;
use crate::transport::{Connection, LocalListener};

/// Connections that the kernel holds before they are accepted.
const BACKLOG: i32 = 1024;

/// How many ports above the first are tried.
const PORT_TRIES: u16 = 1000;

/// After an error of accept (no file descriptors left) it is tried again after this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the node cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The configured port is taken.
    #[error("port {0} is taken: choose another my_port, or none for the next free one")]
    PortTaken(u16),
    /// Every port that was tried is taken.
    #[error("ports {0} to {1} are all taken: set my_port")]
    AllPortsTaken(u16, u16),
    /// The address is not one of this machine's.
    #[error("address {0} is not present on this machine: check my_addr")]
    AddressNotPresent(IpAddr),
    /// The system refused for another reason.
    #[error("cannot listen on {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// Binds the listening socket; must be called within the runtime.
pub(crate) fn bind(
    address: Option<IpAddr>,
    port: ListenPort,
) -> Result<Option<TcpListener>, ListenError> {
    match port {
        ListenPort::None => Ok(None),
        ListenPort::Fixed(port) => match bind_port(address, port) {
            Ok(listener) => Ok(Some(listener)),
            Err((_, e)) if e.kind() == io::ErrorKind::AddrInUse => {
                Err(ListenError::PortTaken(port))
            }
            Err((at, e)) => Err(explain(at, e)),
        },
        ListenPort::From(first) => {
            let last = first.saturating_add(PORT_TRIES);
            for port in first..=last {
                match bind_port(address, port) {
                    Ok(listener) => return Ok(Some(listener)),
                    Err((_, e)) if e.kind() == io::ErrorKind::AddrInUse => {}
                    Err((at, e)) => return Err(explain(at, e)),
                }
            }
            Err(ListenError::AllPortsTaken(first, last))
        }
    }
}

fn explain(at: SocketAddr, e: io::Error) -> ListenError {
    if e.kind() == io::ErrorKind::AddrNotAvailable {
        ListenError::AddressNotPresent(at.ip())
    } else {
        ListenError::Io(at, e)
    }
}

/// All addresses means one IPv6 socket that takes IPv4 too; IPv4 alone where there is no IPv6.
fn bind_port(address: Option<IpAddr>, port: u16) -> Result<TcpListener, (SocketAddr, io::Error)> {
    match address {
        Some(ip) => {
            let at = SocketAddr::new(ip, port);
            bind_at(at, false).map_err(|e| (at, e))
        }
        None => {
            let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            bind_at(at, true).or_else(|e| {
                if e.kind() == io::ErrorKind::AddrInUse {
                    return Err((at, e));
                }
                let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
                bind_at(at, false).map_err(|e| (at, e))
            })
        }
    }
}

fn bind_at(at: SocketAddr, both_families: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(!both_families)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until the node stops.
pub(crate) async fn run(node: Arc<Node>, listener: TcpListener, local: Option<LocalListener>) {
    let mut half_open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (socket, remote) = match accept(&listener, local.as_ref()).await {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        half_open.retain(|task| !task.is_finished());
        if half_open.len() >= node.config.max_half_open
            && let Some(oldest) = half_open.pop_front()
        {
            oldest.abort();
            node.count_evicted();
        }
        let task = tokio::spawn(one(node.clone(), socket, remote));
        half_open.push_back(task.abort_handle());
    }
}

async fn accept(
    listener: &TcpListener,
    local: Option<&LocalListener>,
) -> io::Result<(Connection, SocketAddr)> {
    let local = async {
        match local {
            Some(local) => local.accept().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        accepted = listener.accept() => {
            let (stream, remote) = accepted?;
            Ok((Connection::Tcp(stream), SocketAddr::new(remote.ip().to_canonical(), remote.port())))
        }
        accepted = local => accepted,
    }
}

async fn one(node: Arc<Node>, mut socket: Connection, remote: SocketAddr) {
    let handshake = async {
        tune(&socket)?;
        let established = respond(&node, socket.as_handshaking()).await?;
        Ok::<_, EstablishError>(established)
    };
    let established = match timeout(node.config.handshake_timeout, handshake).await {
        Ok(Ok(established)) => established,
        Ok(Err(error)) => return node.complain(remote, &error, false),
        Err(_) => return node.complain(remote, &EstablishError::Timeout, false),
    };
    // No longer half open: a task of its own, which eviction does not reach.
    tokio::spawn(async move {
        let origin = Origin { remote, dialled: None };
        if let Err(error) = adopt(&node, socket, established, origin).await {
            node.complain(remote, &error, false);
        }
    });
}
