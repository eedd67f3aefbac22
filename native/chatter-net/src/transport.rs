//! What carries the bytes of a link: TCP, or between nodes of one host a Unix domain socket, which
//! takes half the processor time and has no port that the network could reach.
//!
//! A node that listens on a TCP port also listens on the abstract Unix socket `chatter:ADDRESS:PORT`,
//! `*` for all addresses (unix(7); Linux only). Abstract names belong to the network namespace, as
//! addresses do, so the same name never leads to another host. Anybody on the host may take a name:
//! a socket of another user is left alone, and the handshake is that of TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, tcp};

#[cfg(target_os = "linux")]
use tokio::net::{UnixListener, UnixStream, unix};

use crate::tcp_state::{self, TcpState};

/// Which kind of socket a link has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP over IPv4 or IPv6.
    Tcp,
    /// A Unix domain socket; the peer is on this host.
    Unix,
}

/// A stream during the handshake.
pub(crate) trait Handshaking: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Handshaking for T {}

/// A connected socket that may move to the runtime of another thread.
pub(crate) enum Connection {
    Tcp(TcpStream),
    #[cfg(target_os = "linux")]
    Unix(UnixStream),
}

impl Connection {
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Tcp(_) => Transport::Tcp,
            #[cfg(target_os = "linux")]
            Self::Unix(_) => Transport::Unix,
        }
    }

    pub(crate) fn as_handshaking(&mut self) -> &mut dyn Handshaking {
        match self {
            Self::Tcp(stream) => stream,
            #[cfg(target_os = "linux")]
            Self::Unix(stream) => stream,
        }
    }

    /// Registers the socket with the runtime that is entered and cuts it into its halves.
    pub(crate) fn split(
        self,
        runtime: &tokio::runtime::Handle,
    ) -> io::Result<(ReadHalf, WriteHalf)> {
        match self {
            Self::Tcp(stream) => {
                let stream = stream.into_std()?;
                let _entered = runtime.enter();
                let (read, write) = TcpStream::from_std(stream)?.into_split();
                Ok((ReadHalf::Tcp(read), WriteHalf::Tcp(write)))
            }
            #[cfg(target_os = "linux")]
            Self::Unix(stream) => {
                let stream = stream.into_std()?;
                let _entered = runtime.enter();
                let (read, write) = UnixStream::from_std(stream)?.into_split();
                Ok((ReadHalf::Unix(read), WriteHalf::Unix(write)))
            }
        }
    }
}

/// The receiving half of a link's socket.
pub(crate) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    #[cfg(target_os = "linux")]
    Unix(unix::OwnedReadHalf),
}

impl ReadHalf {
    pub(crate) async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.read(into).await,
            #[cfg(target_os = "linux")]
            Self::Unix(half) => half.read(into).await,
        }
    }
}

/// The sending half of a link's socket.
pub(crate) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    #[cfg(target_os = "linux")]
    Unix(unix::OwnedWriteHalf),
}

impl WriteHalf {
    /// Writes what there is room for. Of bytes that are `apart`, TCP keeps those of later writes apart
    /// until they are sent.
    pub(crate) fn try_write(&self, bytes: &[u8], apart: bool) -> io::Result<usize> {
        #[cfg(not(target_os = "linux"))]
        let _ = apart;
        match self {
            #[cfg(target_os = "linux")]
            Self::Tcp(half) if apart => {
                let stream: &TcpStream = half.as_ref();
                let flags = libc::MSG_EOR | libc::MSG_NOSIGNAL;
                let send = || socket2::SockRef::from(stream).send_with_flags(bytes, flags);
                stream.try_io(Interest::WRITABLE, send)
            }
            Self::Tcp(half) => half.try_write(bytes),
            #[cfg(target_os = "linux")]
            Self::Unix(half) => half.try_write(bytes),
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.writable().await,
            #[cfg(target_os = "linux")]
            Self::Unix(half) => half.writable().await,
        }
    }

    /// What the kernel knows of the connection; see [`tcp_state::read`].
    pub(crate) fn tcp_state(&self) -> Option<TcpState> {
        match self {
            Self::Tcp(half) => tcp_state::read(half.as_ref()),
            #[cfg(target_os = "linux")]
            Self::Unix(_) => None,
        }
    }

    /// Whether there may be a bound of what is outstanding: not for a Unix socket, which has little.
    pub(crate) fn can_bound(&self) -> bool {
        matches!(self, Self::Tcp(half) if tcp_state::can_bound(half.as_ref()))
    }

    /// Bounds what is outstanding, if [`WriteHalf::can_bound`]. Should it fail, latency is worse.
    pub(crate) fn bound_outstanding(&self, bytes: Option<u32>) {
        if let Self::Tcp(half) = self {
            tcp_state::bound(half.as_ref(), bytes).ok();
        }
    }

    /// What a Unix socket may hold, in bytes; `None` for others.
    pub(crate) fn depth(&self) -> Option<usize> {
        match self {
            Self::Tcp(_) => None,
            #[cfg(target_os = "linux")]
            Self::Unix(half) => socket2::SockRef::from(half.as_ref()).send_buffer_size().ok(),
        }
    }

    /// Has a Unix socket hold so much, but at most twice `net.core.wmem_max`.
    pub(crate) fn set_depth(&self, bytes: usize) {
        #[cfg(target_os = "linux")]
        if let Self::Unix(half) = self {
            // The kernel doubles the number, for what its own records take.
            socket2::SockRef::from(half.as_ref()).set_send_buffer_size(bytes / 2).ok();
        }
        #[cfg(not(target_os = "linux"))]
        let _ = bytes;
    }

    /// Bounds the unsent bytes in the kernel. Where the system cannot, latency is worse, nothing else.
    /// A Unix socket has a bound of its own ([`WriteHalf::depth`]).
    pub(crate) fn set_lowat(&self, bytes: u32) {
        if let Self::Tcp(half) = self {
            set_lowat(half.as_ref(), bytes);
        }
    }
}

/// See [`WriteHalf::set_lowat`].
pub(crate) fn set_lowat(socket: &TcpStream, bytes: u32) {
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(socket).set_tcp_notsent_lowat(bytes).ok();
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, bytes);
}

/// The listening Unix socket of a node, where there are any.
pub(crate) struct LocalListener(#[cfg(target_os = "linux")] UnixListener);

impl LocalListener {
    /// Listens beside a TCP socket at `address` (`None` for all) and `port`; within a runtime.
    pub(crate) fn bind(address: Option<IpAddr>, port: u16) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        return UnixListener::bind(name(address, port)).map(Self);
        #[cfg(not(target_os = "linux"))]
        return Err(io::ErrorKind::Unsupported.into());
    }

    /// The next connection. Its peer has no address but that it is on this host.
    pub(crate) async fn accept(&self) -> io::Result<(Connection, SocketAddr)> {
        #[cfg(target_os = "linux")]
        {
            let (stream, _) = self.0.accept().await?;
            Ok((Connection::Unix(stream), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)))
        }
        #[cfg(not(target_os = "linux"))]
        std::future::pending().await
    }
}

/// The Unix socket of the node that listens at `at`, if it is on this host and has one of our user.
pub(crate) async fn connect_local(at: SocketAddr) -> Option<Connection> {
    #[cfg(target_os = "linux")]
    {
        if !is_local(at.ip()) {
            return None;
        }
        for address in [Some(at.ip()), None] {
            if let Ok(stream) = UnixStream::connect(name(address, at.port())).await
                && is_trusted(&stream)
            {
                return Some(Connection::Unix(stream));
            }
        }
    }
    let _ = at;
    None
}

#[cfg(target_os = "linux")]
fn name(address: Option<IpAddr>, port: u16) -> String {
    match address.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => format!("\0chatter:{ip}:{port}"),
        None => format!("\0chatter:*:{port}"),
    }
}

/// Whether `ip` is an address of this host: others cannot be bound to.
#[cfg(target_os = "linux")]
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether whoever listens at the other end is the user that this process runs as, or root.
#[cfg(target_os = "linux")]
fn is_trusted(stream: &UnixStream) -> bool {
    let own = UnixStream::pair().and_then(|(one, _)| one.peer_cred()).map(|cred| cred.uid());
    matches!((stream.peer_cred(), own), (Ok(peer), Ok(own)) if peer.uid() == own || peer.uid() == 0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Given a node on all addresses, expect its socket for every address of this host, and for no
    /// address of another host (RFC 5737) that happens to use the same port.
    #[tokio::test]
    async fn a_port_of_another_host_is_another_node() {
        let port = std::process::id() as u16 | 1;
        let _listener = LocalListener::bind(None, port).unwrap();
        for (ip, expected) in
            [([127, 0, 0, 1], true), ([127, 9, 9, 9], true), ([192, 0, 2, 1], false)]
        {
            assert_eq!(connect_local((ip, port).into()).await.is_some(), expected, "{ip:?}");
        }
        assert!(connect_local(([127, 0, 0, 1], port ^ 1).into()).await.is_none());
    }

    /// Given a node on one address, expect its socket for that address alone.
    #[tokio::test]
    async fn an_address_is_not_all_addresses() {
        let port = (std::process::id() as u16).wrapping_add(2) | 1;
        let _listener = LocalListener::bind(Some(Ipv4Addr::LOCALHOST.into()), port).unwrap();
        assert!(connect_local(([127, 0, 0, 1], port).into()).await.is_some());
        assert!(connect_local(([127, 0, 0, 2], port).into()).await.is_none());
    }
}
