//! Network segments: the interfaces to send and listen on, and a UDP socket for each.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use if_addrs::{IfOperStatus, get_if_addrs};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use crate::config::{Interfaces, MulticastConfig, NetConfig};

/// What the kernel may hold for a socket that is not read at once; less where it allows less.
const RECEIVE_BUFFER: usize = 1 << 20;

/// An interface as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interface {
    pub name: String,
    pub index: u32,
    pub loopback: bool,
    /// Its addresses of both families, sorted.
    pub addresses: Vec<IpAddr>,
}

impl Interface {
    /// The address that stands for the interface, of the family of the group.
    fn address(&self, group: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| ip.is_ipv4() == group.is_ipv4())
    }
}

/// The interfaces that are up, by index.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for address in get_if_addrs()? {
        let down = matches!(address.oper_status, IfOperStatus::Down | IfOperStatus::NotPresent);
        let (Some(index), false) = (address.index, down) else { continue };
        let ip = address.ip();
        match found.iter_mut().find(|interface| interface.index == index) {
            Some(interface) => interface.addresses.push(ip),
            None => found.push(Interface {
                loopback: address.is_loopback(),
                name: address.name,
                index,
                addresses: vec![ip],
            }),
        }
    }
    found.sort_by_key(|interface| interface.index);
    found.iter_mut().for_each(|interface| interface.addresses.sort());
    Ok(found)
}

/// Those of `all` that are to be used: chosen ones by name or address; else those that have the
/// addresses told to others, else all but loopback, else loopback.
pub(crate) fn chosen(
    all: &[Interface],
    multicast: &MulticastConfig,
    config: &NetConfig,
) -> Vec<Interface> {
    let able = |interface: &&Interface| interface.address(multicast.group).is_some();
    let pick = |test: &dyn Fn(&Interface) -> bool| -> Vec<Interface> {
        all.iter().filter(able).filter(|interface| test(interface)).cloned().collect()
    };
    match &multicast.interfaces {
        Interfaces::All => pick(&|_| true),
        Interfaces::Chosen(names) => pick(&|interface| {
            let named = |name: &String| {
                *name == interface.name
                    || name.parse().is_ok_and(|ip: IpAddr| interface.addresses.contains(&ip))
            };
            names.iter().any(named)
        }),
        Interfaces::Auto => {
            let told: Vec<_> = config.listen_address.iter().chain(&config.advertise).collect();
            let mut found =
                pick(&|interface| told.iter().any(|ip| interface.addresses.contains(ip)));
            if found.is_empty() {
                found = pick(&|interface| !interface.loopback);
            }
            if found.is_empty() { pick(&|_| true) } else { found }
        }
    }
}

/// Gives the membership of a socket back, before another joins on the same interface. Linux counts
/// members by interface index: a socket whose membership went with a former interface of that index
/// would, when it is closed, take that of its successor along.
pub(crate) fn leave(config: &MulticastConfig, interface: &Interface, socket: &UdpSocket) {
    let socket = SockRef::from(socket);
    // Fails where the membership is lost already.
    let _ = match config.group {
        IpAddr::V4(group) => {
            let at = InterfaceIndexOrAddress::Index(interface.index);
            socket.leave_multicast_v4_n(&group, &at)
        }
        IpAddr::V6(group) => socket.leave_multicast_v6(&group, interface.index),
    };
}

/// Where datagrams go from an interface.
pub(crate) fn destination(config: &MulticastConfig, interface: &Interface) -> SocketAddr {
    match config.group {
        IpAddr::V4(_) => SocketAddr::new(config.group, config.port),
        IpAddr::V6(group) => SocketAddrV6::new(group, config.port, 0, interface.index).into(),
    }
}

/// A socket that sends to the group from one interface, and hears what comes in there, also from this
/// host. Must be called within the runtime that is to serve it. All nodes of the host share the port.
pub(crate) fn open(config: &MulticastConfig, interface: &Interface) -> io::Result<UdpSocket> {
    let to = destination(config, interface);
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    // Elsewhere, the port is shared by this; on Linux it would keep nodes of other users out.
    #[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Only a smaller buffer if it is refused.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    match config.group {
        IpAddr::V4(group) => {
            socket.bind(&to.into())?;
            // Else what other sockets of the host have joined would come in here too.
            #[cfg(any(target_os = "linux", target_os = "android"))]
            socket.set_multicast_all_v4(false)?;
            let at = InterfaceIndexOrAddress::Index(interface.index);
            socket.join_multicast_v4_n(&group, &at)?;
            if let Some(IpAddr::V4(ip)) = interface.address(config.group) {
                socket.set_multicast_if_v4(&ip)?;
            }
            socket.set_multicast_loop_v4(true)?;
            socket.set_multicast_ttl_v4(config.ttl)?;
        }
        IpAddr::V6(group) => {
            socket.set_only_v6(true)?;
            socket.bind(&to.into())?;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            socket.set_multicast_all_v6(false)?;
            socket.join_multicast_v6(&group, interface.index)?;
            socket.set_multicast_if_v6(interface.index)?;
            socket.set_multicast_loop_v6(true)?;
            socket.set_multicast_hops_v6(config.ttl)?;
        }
    }
    UdpSocket::from_std(socket.into())
}
