//! The addresses that this machine can be reached at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use if_addrs::get_if_addrs;

/// The address listened on, or: the ones that packets to other machines would carry, the other ones of
/// the host that mean something outside of it, and loopback.
pub(crate) fn addresses(listen: Option<IpAddr>) -> Vec<IpAddr> {
    if let Some(address) = listen {
        return vec![address];
    }
    let mut found = Vec::new();
    // Nothing is sent: connecting a UDP socket only asks the routing table. Documentation addresses
    // (RFC 5737, RFC 3849): no machine has them, every default route leads there.
    for (bind, probe) in [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")] {
        let source = UdpSocket::bind(bind)
            .and_then(|socket| socket.connect(probe).and_then(|()| socket.local_addr()));
        if let Ok(source) = source {
            found.push(source.ip());
        }
    }
    let all = get_if_addrs().unwrap_or_default();
    for ip in all.iter().map(|interface| interface.ip()).filter(is_global) {
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    found.push(Ipv4Addr::LOCALHOST.into());
    found
}

/// Whether an address means something to others than this host and this link.
pub(crate) fn is_global(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !is_link_local(ip) && !ip.is_unspecified(),
    }
}

/// fe80::/10
pub(crate) fn is_link_local(ip: &Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}
