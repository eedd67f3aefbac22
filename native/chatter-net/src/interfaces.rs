//! The addresses that this machine can be reached at.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// The address listened on, or the one that packets to other machines would carry, and loopback.
/// Nothing is sent: connecting a UDP socket only asks the routing table.
pub(crate) fn addresses(listen: Option<IpAddr>) -> Vec<IpAddr> {
    if let Some(address) = listen {
        return vec![address];
    }
    let mut found = Vec::new();
    // Documentation addresses (RFC 5737, RFC 3849): no machine has them, every default route leads there.
    for (bind, probe) in [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")] {
        let source = UdpSocket::bind(bind)
            .and_then(|socket| socket.connect(probe).and_then(|()| socket.local_addr()));
        if let Ok(source) = source {
            found.push(source.ip());
        }
    }
    found.push(Ipv4Addr::LOCALHOST.into());
    found
}
