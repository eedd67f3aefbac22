//! One link in use: probes, liveness, round trip, and which LSPs it has yet to be sent.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::config::{ControlConfig, ms};
use super::event::{LinkInfo, LinkState, LinkUp};
use super::rtt::Rtt;
use crate::ids::{LinkId, NodeId};
use crate::lsdb::Lsdb;
use crate::wire::hello::{HELLO_LEN, HELLO_NAMESAKE, HELLO_SYNCED, Hello};
use crate::wire::identity::Identity;
use crate::wire::{PACKET_HEADER_LEN, PacketType, packet_header};

/// HELLOs whose sending times are remembered; an echo of an older one gives no round trip.
const SENT_HELLOS: usize = 8;

/// The state of a link in use.
#[derive(Clone, Debug)]
pub(super) struct Adjacency {
    pub(super) peer: Identity,
    pub(super) we_dialled: bool,
    pub(super) dial_seq: u64,
    /// The peer has said that we have all it had: the link can be used and told of.
    pub(super) synced: bool,
    /// It takes the place of a link that others were told of, to the same life.
    pub(super) successor: bool,
    pub(super) configured_metric: Option<u32>,
    remote: SocketAddr,
    since: Instant,
    rtt: Rtt,
    last_alive: Instant,
    hold: Duration,
    next_hello: Instant,
    hello_due: bool,
    sent: [Option<(u32, Instant)>; SENT_HELLOS],
    sent_seq: u32,
    heard: Option<(u32, Instant)>,
    mismatch_since: Option<Instant>,
    resync_wait: Duration,
    /// The rest of our summary, from this origin on, must be sent.
    summary_from: Option<NodeId>,
    /// When the summary is repeated, should the peer not say that it has answered it.
    summary_again: Instant,
    /// The peer's summary has come, and what is to be sent because of it is marked.
    compared: bool,
    /// The peer has a namesake and should know.
    namesake: bool,
    /// The peer was told that all this is sent.
    told_synced: bool,
    own_dirty: bool,
    dirty: BTreeSet<NodeId>,
    pub(super) blocked: bool,
}

impl Adjacency {
    pub(super) fn new(now: Instant, up: LinkUp, config: &ControlConfig) -> Self {
        let mut adjacency = Self {
            hold: Duration::ZERO,
            remote: up.remote,
            we_dialled: up.we_dialled,
            dial_seq: up.dial_seq,
            synced: false,
            successor: false,
            configured_metric: None,
            since: now,
            rtt: Rtt::default(),
            last_alive: now,
            next_hello: now + ms(config.hello_ms.into()),
            hello_due: true,
            sent: [None; SENT_HELLOS],
            sent_seq: 0,
            heard: None,
            mismatch_since: None,
            resync_wait: ms(config.resync_ms),
            summary_from: Some(NodeId(0)),
            summary_again: now + ms(config.resync_ms),
            compared: false,
            namesake: false,
            told_synced: false,
            own_dirty: false,
            dirty: BTreeSet::new(),
            blocked: false,
            peer: up.peer,
        };
        adjacency.set_hold(adjacency.peer.hold_ms, config);
        adjacency
    }

    /// The cost of sending over the link; at least 1.
    pub(super) fn metric(&self) -> u32 {
        self.configured_metric.unwrap_or(self.rtt.metric()).max(1)
    }

    /// Something was heard.
    pub(super) fn alive(&mut self, now: Instant) {
        self.last_alive = self.last_alive.max(now);
    }

    /// This process was held up for so long: the peer is not to blame.
    pub(super) fn forgive(&mut self, now: Instant, late: Duration) {
        self.last_alive = self.last_alive.max(now.min(self.last_alive + late));
    }

    /// When the link is given up, should nothing be heard.
    pub(super) fn hold_deadline(&self) -> Instant {
        self.last_alive + self.hold
    }

    /// When the link needs attention.
    pub(super) fn next_timeout(&self) -> Instant {
        self.next_hello.min(self.hold_deadline())
    }

    /// Whether a HELLO has become due.
    pub(super) fn tick(&mut self, now: Instant, config: &ControlConfig) -> bool {
        if now < self.next_hello {
            return false;
        }
        if !self.synced && self.summary_again <= now {
            self.send_summary(now, config);
        }
        let interval = ms(u32::from(config.hello_ms).max(1));
        self.next_hello += interval;
        if self.next_hello <= now {
            self.next_hello = now + interval;
        }
        self.hello_due = true;
        true
    }

    /// Takes in a probe. Returns whether it must be answered at once.
    pub(super) fn hear(&mut self, now: Instant, hello: &Hello, config: &ControlConfig) -> bool {
        let first = self.heard.is_none();
        self.heard = Some((hello.seq, now));
        self.set_hold(hello.hold_ms, config);
        self.synced |= hello.flags & HELLO_SYNCED != 0;
        if let Some((_, at)) = self.sent.iter().flatten().find(|(seq, _)| *seq == hello.echo_seq) {
            let micros = now.saturating_duration_since(*at).as_micros();
            let micros = micros.min(u128::from(u32::MAX)) as u32;
            self.rtt.sample(micros.saturating_sub(hello.echo_delay_us));
        }
        self.hello_due |= first;
        first
    }

    /// Our summary must be sent, from the beginning.
    pub(super) fn send_summary(&mut self, now: Instant, config: &ControlConfig) {
        self.summary_from = Some(NodeId(0));
        self.summary_again = now + ms(config.resync_ms);
    }

    /// A whole summary of the peer has been compared.
    pub(super) fn compared(&mut self) {
        self.compared = true;
    }

    /// A HELLO is due, whatever the interval.
    pub(super) fn probe(&mut self) {
        self.hello_due = true;
    }

    /// The peer is to be told that another node has its name.
    pub(super) fn tell_namesake(&mut self) {
        self.namesake = true;
        self.hello_due = true;
    }

    /// Whether others are told of the link.
    pub(super) fn is_told(&self) -> bool {
        self.synced || self.successor
    }

    /// Compares digests. Returns whether summaries should be exchanged to put an end to a difference.
    pub(super) fn compare(&mut self, now: Instant, same: bool, config: &ControlConfig) -> bool {
        if same {
            self.mismatch_since = None;
            self.resync_wait = ms(config.resync_ms);
            return false;
        }
        let since = *self.mismatch_since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.resync_wait {
            return false;
        }
        self.mismatch_since = Some(now);
        self.resync_wait = (self.resync_wait * 2).min(ms(config.max_resync_ms));
        true
    }

    /// The LSP of `origin` must be sent.
    pub(super) fn mark(&mut self, me: NodeId, origin: NodeId) {
        if origin == me {
            self.own_dirty = true;
        } else {
            self.dirty.insert(origin);
        }
    }

    /// The peer has this LSP of `origin`, or a newer one.
    pub(super) fn unmark(&mut self, me: NodeId, origin: NodeId) {
        if origin == me {
            self.own_dirty = false;
        } else {
            self.dirty.remove(&origin);
        }
    }

    /// The next packet: a due HELLO, our summary, the own LSP, those of others, and the word that all
    /// is sent.
    pub(super) fn next_packet(
        &mut self,
        now: Instant,
        me: NodeId,
        lsdb: &Lsdb,
        config: &ControlConfig,
    ) -> Option<Vec<u8>> {
        if std::mem::take(&mut self.hello_due) {
            return Some(self.hello(now, lsdb.digest(), config));
        }
        if self.blocked {
            return None;
        }
        if let Some(first) = self.summary_from {
            let summary = lsdb.summary(first);
            self.summary_from = summary.last.0.checked_add(1).map(NodeId);
            return Some(summary.packet());
        }
        if std::mem::take(&mut self.own_dirty)
            && let Some(packet) = lsdb.packet(now, me)
        {
            return Some(packet);
        }
        while let Some(origin) = self.dirty.pop_first() {
            if let Some(packet) = lsdb.packet(now, origin) {
                return Some(packet);
            }
        }
        if self.compared && !self.told_synced {
            self.told_synced = true;
            return Some(self.hello(now, lsdb.digest(), config));
        }
        None
    }

    pub(super) fn info(&self, link: LinkId) -> LinkInfo {
        LinkInfo {
            link,
            peer: self.peer.clone(),
            remote: self.remote,
            we_dialled: self.we_dialled,
            srtt_us: self.rtt.srtt_us(),
            metric: self.metric(),
            state: if self.synced { LinkState::Up } else { LinkState::Sync },
            since: self.since,
        }
    }

    fn set_hold(&mut self, peer_ms: u32, config: &ControlConfig) {
        self.hold = ms(peer_ms.min(config.max_hold_ms).max(config.hold_ms));
    }

    fn hello(&mut self, now: Instant, lsdb_digest: u64, config: &ControlConfig) -> Vec<u8> {
        self.sent_seq = self.sent_seq.checked_add(1).unwrap_or(1);
        self.sent[self.sent_seq as usize % SENT_HELLOS] = Some((self.sent_seq, now));
        let (echo_seq, echo_delay_us) = self.heard.map_or((0, 0), |(seq, at)| {
            let micros = now.saturating_duration_since(at).as_micros();
            (seq, micros.min(u128::from(u32::MAX)) as u32)
        });
        let hello = Hello {
            flags: if self.told_synced { HELLO_SYNCED } else { 0 }
                | if self.namesake { HELLO_NAMESAKE } else { 0 },
            interval_ms: config.hello_ms,
            hold_ms: config.hold_ms,
            seq: self.sent_seq,
            echo_seq,
            echo_delay_us,
            lsdb_digest,
        };
        let mut packet = Vec::with_capacity(PACKET_HEADER_LEN + HELLO_LEN);
        packet.extend_from_slice(&packet_header(PacketType::Hello, HELLO_LEN));
        packet.extend_from_slice(&hello.to_bytes());
        packet
    }
}
