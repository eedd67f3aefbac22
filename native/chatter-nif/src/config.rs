//! The configuration as Erlang hands it over; it has been validated there (`chatter_config`).

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use chatter_core::broadcast::BroadcastConfig;
use chatter_core::channel::OnLoss;
use chatter_core::control::ControlConfig;
use chatter_core::crypto::ClusterKey;
use chatter_core::crypto::key::KeyError;
use chatter_net::config::{Interfaces, ListenPort, MulticastConfig, NetConfig};
use rustler::{Binary, NifMap, NifTaggedEnum, NifUnitEnum};

use crate::allocator;

/// Which port to listen on.
#[derive(NifTaggedEnum)]
pub(crate) enum Port {
    None,
    Fixed(u16),
    From(u16),
}

/// Which interfaces multicast uses.
#[derive(NifTaggedEnum)]
pub(crate) enum MulticastIf {
    Auto,
    All,
    Chosen(Vec<String>),
}

/// Where the cluster secret comes from.
#[derive(NifTaggedEnum)]
pub(crate) enum KeySource<'a> {
    Key(Binary<'a>),
    Cookie(Binary<'a>),
}

/// What Erlang calls the ways to take a loss.
#[derive(NifUnitEnum)]
enum Loss {
    Nodedown,
    Notify,
}

/// What `chatter_nif:node_start/1` takes: the keys of docs/operations.md, under the same names.
#[derive(NifMap)]
pub(crate) struct StartConfig<'a> {
    name: String,
    /// 4 or 16 bytes; empty for all.
    my_addr: Binary<'a>,
    my_port: Port,
    unix_sockets: bool,
    advertise: Vec<Binary<'a>>,
    multicast: bool,
    multicast_addr: Binary<'a>,
    multicast_port: u16,
    multicast_ttl: u32,
    multicast_if: MulticastIf,
    multicast_rate: u64,
    multicast_queue: usize,
    beacon_ms: u64,
    discovery_links: usize,
    /// Whether found nodes are dialled at all.
    dial_found: bool,
    key: KeySource<'a>,
    encryption: bool,
    hello_ms: u16,
    hold_ms: u32,
    unreachable_ms: u32,
    lsp_refresh_s: u32,
    routes: Vec<(String, String)>,
    channel_window: u64,
    max_frame: usize,
    max_channels: usize,
    retransmit_memory: usize,
    setup_retry_ms: u64,
    gap_timeout_ms: u64,
    on_loss: Loss,
    control_queue: usize,
    relay_queue: usize,
    channel_queue: usize,
    flow_quota: usize,
    flows: bool,
    broadcast_window: usize,
    broadcast_memory: usize,
    max_broadcast: usize,
    max_half_open: usize,
    max_links: usize,
    max_nodes: usize,
    handshake_timeout_ms: u64,
    reconnect_min_ms: u32,
    reconnect_max_ms: u32,
    workers: usize,
    busy_poll_us: u64,
}

impl StartConfig<'_> {
    /// Derives the key, which takes about a tenth of a second from a cookie.
    pub(crate) fn into_net(self) -> Result<NetConfig, KeyError> {
        let key = match &self.key {
            KeySource::Key(key) => ClusterKey::parse(key.as_slice())?,
            KeySource::Cookie(cookie) => {
                let key = ClusterKey::from_cookie(cookie.as_slice());
                allocator::give_back();
                key?
            }
        };
        let control = ControlConfig {
            hello_ms: self.hello_ms,
            hold_ms: self.hold_ms,
            unreachable_ms: self.unreachable_ms,
            refresh_s: self.lsp_refresh_s,
            max_nodes: self.max_nodes,
            max_links: self.max_links,
            dial_backoff_ms: self.reconnect_min_ms,
            max_dial_backoff_ms: self.reconnect_max_ms,
            ..ControlConfig::default()
        };
        Ok(NetConfig {
            name: self.name,
            listen_address: ip(&self.my_addr),
            listen_port: match self.my_port {
                Port::None => ListenPort::None,
                Port::Fixed(port) => ListenPort::Fixed(port),
                Port::From(port) => ListenPort::From(port),
            },
            unix_sockets: self.unix_sockets,
            advertise: self.advertise.iter().filter_map(ip).collect(),
            multicast: ip(&self.multicast_addr).filter(|_| self.multicast).map(|group| {
                MulticastConfig {
                    group,
                    port: self.multicast_port,
                    ttl: self.multicast_ttl,
                    interfaces: match self.multicast_if {
                        MulticastIf::Auto => Interfaces::Auto,
                        MulticastIf::All => Interfaces::All,
                        MulticastIf::Chosen(names) => Interfaces::Chosen(names),
                    },
                    rate: self.multicast_rate,
                    queue: self.multicast_queue,
                    beacon: Duration::from_millis(self.beacon_ms),
                    links: self.dial_found.then_some(self.discovery_links),
                }
            }),
            key,
            encryption: self.encryption,
            control,
            routes: self.routes,
            channel_window: self.channel_window,
            max_frame: self.max_frame,
            max_channels: self.max_channels,
            retransmit_memory: self.retransmit_memory,
            setup_retry: Duration::from_millis(self.setup_retry_ms),
            gap_timeout: Duration::from_millis(self.gap_timeout_ms),
            on_loss: match self.on_loss {
                Loss::Nodedown => OnLoss::End,
                Loss::Notify => OnLoss::Notify,
            },
            control_queue: self.control_queue,
            relay_queue: self.relay_queue,
            channel_queue: self.channel_queue,
            flow_quota: self.flow_quota,
            flows: self.flows,
            broadcast: BroadcastConfig {
                window: self.broadcast_window,
                memory: self.broadcast_memory,
                max_message: self.max_broadcast,
                gap_timeout: Duration::from_millis(self.gap_timeout_ms),
                max_nodes: 2 * self.max_nodes,
                ..BroadcastConfig::default()
            },
            max_half_open: self.max_half_open,
            max_links: self.max_links,
            handshake_timeout: Duration::from_millis(self.handshake_timeout_ms),
            workers: self.workers,
            busy_poll: Duration::from_micros(self.busy_poll_us),
        })
    }
}

/// An address of 4 or 16 bytes.
pub(crate) fn ip(bytes: &Binary<'_>) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|v6| IpAddr::from(v6).to_canonical())
}

/// An address of 4 or 16 bytes, or of 16 and the 4 of a scope, with a port.
pub(crate) fn socket_address(bytes: &Binary<'_>, port: u16) -> Option<SocketAddr> {
    if let Some((ip, scope)) = bytes.as_slice().split_first_chunk::<16>()
        && let Ok(scope) = <[u8; 4]>::try_from(scope)
    {
        let scope = u32::from_be_bytes(scope);
        return Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, 0, scope).into());
    }
    ip(bytes).map(|ip| SocketAddr::new(ip, port))
}

/// The same the other way.
pub(crate) fn address_bytes(address: &SocketAddr) -> Vec<u8> {
    match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) if v6.scope_id() == 0 => v6.ip().octets().to_vec(),
        SocketAddr::V6(v6) => [&v6.ip().octets()[..], &v6.scope_id().to_be_bytes()].concat(),
    }
}
