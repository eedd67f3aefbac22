//! What a node is started with. Every limit says what happens at it; the user's names for them are
//! in docs/operations.md.

use std::net::IpAddr;
use std::time::Duration;

use chatter_core::broadcast::BroadcastConfig;
use chatter_core::channel::OnLoss;
use chatter_core::control::ControlConfig;
use chatter_core::crypto::ClusterKey;

/// Which TCP port to listen on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenPort {
    /// Do not listen: the node dials, relays, and cannot be dialled.
    None,
    /// This one; taken is an error. 0 lets the system choose.
    Fixed(u16),
    /// This one, or the next free one above it.
    From(u16),
}

/// Which interfaces multicast uses; always those only that are up and have an address of the group's
/// family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Interfaces {
    /// Those that have the addresses told to others; else all but loopback; else loopback.
    Auto,
    /// All of them.
    All,
    /// These, by name or by an address that they have.
    Chosen(Vec<String>),
}

/// UDP multicast.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MulticastConfig {
    /// The group, IPv4 or IPv6.
    pub group: IpAddr,
    /// The UDP port, which all nodes of a host share.
    pub port: u16,
    /// How many routers a datagram may pass, and one more.
    pub ttl: u32,
    /// Where to send and listen.
    pub interfaces: Interfaces,
    /// Bytes a second that are sent, beacons apart; what comes faster waits.
    pub rate: u64,
    /// Bytes that may wait; more is refused.
    pub queue: usize,
    /// Between two beacons, ± 25 %.
    pub beacon: Duration,
    /// Links that a node wants to nodes that were found; `None`: it dials none of them.
    pub links: Option<usize>,
}

/// What a node is started with.
#[derive(Clone)]
pub struct NetConfig {
    /// Full name (`name@host`); empty for a node that has none yet. At most 255 bytes.
    pub name: String,
    /// Address to listen on; `None` for all, IPv4 and IPv6.
    pub listen_address: Option<IpAddr>,
    /// Port to listen on.
    pub listen_port: ListenPort,
    /// Whether links to nodes of this host use Unix domain sockets (Linux).
    pub unix_sockets: bool,
    /// Addresses told to others; empty for those of the interfaces.
    pub advertise: Vec<IpAddr>,
    /// UDP multicast; `None`: no UDP socket is opened.
    pub multicast: Option<MulticastConfig>,
    /// The cluster secret.
    pub key: ClusterKey,
    /// Whether records are encrypted. Both ends must agree.
    pub encryption: bool,
    /// Intervals and limits of the control plane.
    pub control: ControlConfig,
    /// Destinations with the next hop that was chosen for them, both as full names.
    pub routes: Vec<(String, String)>,
    /// Credit of a channel in bytes: what may be under way or wait for the VM at the receiver.
    pub channel_window: u64,
    /// Largest frame accepted, in bytes; a larger one ends the channel.
    pub max_frame: usize,
    /// Bytes of all channels together that are kept until they are acknowledged; beyond it channels
    /// stop fetching from the VM until there is room.
    pub retransmit_memory: usize,
    /// An OPEN or RESET that is not answered is sent again after this long.
    pub setup_retry: Duration,
    /// A packet of a channel that is missing for so long while there is a route is lost: the channel
    /// ends. At least [`NetConfig::patience`] is given.
    pub gap_timeout: Duration,
    /// What is done about such a loss.
    pub on_loss: OnLoss,
    /// Channels at once; one more is refused.
    pub max_channels: usize,
    /// Bytes of link-state packets queued per link; beyond it LSPs wait as marks, one for each origin.
    pub control_queue: usize,
    /// Bytes of transit queued per link; beyond it the fattest queue loses its newest packet.
    pub relay_queue: usize,
    /// Bytes that wait in a channel; beyond it no more is fetched from the VM, which then holds back all
    /// senders of the channel.
    pub channel_queue: usize,
    /// Frames of different senders may overtake each other; otherwise a channel is one flow.
    pub flows: bool,
    /// Bytes that wait in the queue of one flow; beyond it its sender is held back.
    pub flow_quota: usize,
    /// Limits of broadcasts; at least [`NetConfig::patience`] is given to targets without a route, and the
    /// rate of multicast is that of [`MulticastConfig`].
    pub broadcast: BroadcastConfig,
    /// Half-open handshakes at once; one more evicts the oldest.
    pub max_half_open: usize,
    /// Links at once; one more is refused.
    pub max_links: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Threads of the runtime.
    pub workers: usize,
    /// How long a thread polls its sockets after something has come in, before it sleeps.
    pub busy_poll: Duration,
}

impl NetConfig {
    /// For how long a node may be silent before it counts as gone: a channel does not give up sooner.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(
            u64::from(self.control.hold_ms) + u64::from(self.control.unreachable_ms),
        ) + Duration::from_secs(1)
    }
}
