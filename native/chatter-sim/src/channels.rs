//! The channels of a host: what `chatter-net` does around the halves of the core, in one thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatter_core::channel::budget::may_hold_more;
use chatter_core::channel::incoming::Incoming;
use chatter_core::channel::life::{Outgoing, State};
use chatter_core::channel::receive::Piggyback;
use chatter_core::channel::send::Sender;
use chatter_core::channel::table::Table;
use chatter_core::channel::{Names, OnLoss, SERVICE_INTERVAL, Settings};
use chatter_core::ids::{ChannelIndex, Incarnation, LinkId, NodeId};
use chatter_core::sched::Lane;
use chatter_core::sched::fair::Level;
use chatter_core::wire::data::{Ack, Open, ResetReason};
use chatter_core::wire::packet::Packet;
use chatter_core::wire::routed::RoutedHeader;

use crate::heap::Event;
use crate::host::Host;
use crate::inbox::Inbox;
use crate::scenario::Limits;
use crate::time::{Nanos, S};
use crate::world::World;

/// Channels at once, as by default.
pub(crate) const MAX_CHANNELS: usize = 4096;

/// RESET and UNREACHABLE answers per second, as in `chatter-net`.
const COMPLAINTS_PER_S: u32 = 100;

/// One end of a channel.
pub(crate) struct Channel {
    pub(crate) peer: NodeId,
    pub(crate) out: Outgoing,
    pub(crate) inc: Incoming,
    pub(crate) inbox: Inbox,
    in_service: bool,
    /// The link that knows whether there is something to send.
    on: Option<LinkId>,
    /// The user was told to wait.
    pub(crate) user_waits: bool,
    retained: usize,
}

/// All channels of a host.
pub(crate) struct Channels {
    settings: Arc<Settings>,
    pub(crate) table: Table<ChannelIndex>,
    pub(crate) all: BTreeMap<u32, Channel>,
    in_service: Vec<u32>,
    pub(crate) touched: Vec<u32>,
    /// Bytes that all channels keep until they are acknowledged.
    pub(crate) retained: usize,
    complained: (Nanos, u32),
}

impl Channels {
    pub(crate) fn new(limits: &Limits, me: NodeId, incarnation: Incarnation, name: &str) -> Self {
        let settings = Settings {
            me,
            incarnation,
            name: name.to_owned(),
            window: limits.window,
            max_frame: 1 << 30,
            setup_retry: Duration::from_millis(250),
            gap_timeout: Duration::from_secs(10),
            on_loss: OnLoss::End,
            flow_quota: 256 * 1024,
        };
        Self {
            settings: Arc::new(settings),
            table: Table::new(MAX_CHANNELS),
            all: BTreeMap::new(),
            in_service: Vec::new(),
            touched: Vec::new(),
            retained: 0,
            complained: (0, 0),
        }
    }
}

impl World {
    /// Makes an end of a channel: one that asks a life of `peer`, or one that grants an OPEN.
    pub(crate) fn add_channel(
        &mut self,
        at: usize,
        peer: NodeId,
        wanted: Result<Incarnation, &Open>,
    ) -> Option<ChannelIndex> {
        let index = ChannelIndex(self.rng.any() as u32);
        let names = Names { index, epoch: self.rng.any(), peer };
        let now = self.clock.instant(self.now);
        let channels = &mut self.hosts[at].channels;
        let settings = channels.settings.clone();
        let life = wanted.unwrap_or_else(|open| open.incarnation);
        let mut inc = Incoming::new(&settings, names);
        let (mut out, other) = match wanted {
            Ok(life) => (Outgoing::asking(settings, names, life, now), None),
            Err(open) => {
                inc.open(open.index);
                let other = Some((open.index, open.epoch));
                (Outgoing::granting(settings, names, open, now), other)
            }
        };
        out.hold_open(!channels.table.may_open(peer));
        if !channels.table.insert(index, (peer, life), other, index) {
            return None;
        }
        self.last_session += 1;
        let inbox = Inbox::new(self.last_session);
        let new = Channel {
            peer,
            out,
            inc,
            inbox,
            in_service: false,
            on: None,
            user_waits: false,
            retained: 0,
        };
        channels.all.insert(index.0, new);
        Some(index)
    }

    /// Sends what a channel has to send, and forgets it when it is over.
    pub(crate) fn carry_on(&mut self, at: usize, index: u32) {
        self.transmit(at, index);
        let writable = self.user_may_go_on(at, index);
        if writable {
            self.user_writable(at, index);
        }
        self.want_service(at, index);
        self.forget_if_over(at, index);
    }

    fn transmit(&mut self, at: usize, index: u32) -> Option<LinkId> {
        let now = self.clock.instant(self.now);
        let host = &self.hosts[at];
        let channel = host.channels.all.get(&index)?;
        let link = host.next_hop(channel.peer, u64::from(index))?;
        let host = &mut self.hosts[at];
        let channel = host.channels.all.get_mut(&index)?;
        let entry = host.links.get_mut(&link)?;
        if channel.out.is_unconfirmed() && channel.inc.is_over() {
            channel.out.confirm_end();
        }
        while let Some(signal) = channel.out.poll_signal(now) {
            entry.queue.push_control(signal);
        }
        entry.queue.set_own(index, channel.out.ready());
        let before = channel.on.replace(link).filter(|before| *before != link);
        if let Some(ack) = channel.inc.poll_ack() {
            entry.queue.push_control(ack);
        }
        if let Some(entry) = before.and_then(|before| host.links.get_mut(&before)) {
            entry.queue.remove_own(index);
        }
        self.mark_dirty(at, link);
        Some(link)
    }

    /// Queues an answer to a packet that nobody took.
    pub(crate) fn answer(&mut self, at: usize, to: NodeId, packet: Packet) {
        if let Some(link) = self.hosts[at].next_hop(to, 0) {
            if let Some(entry) = self.hosts[at].links.get_mut(&link) {
                entry.queue.push_control(packet);
            }
            self.mark_dirty(at, link);
        }
    }

    pub(crate) fn may_complain(&mut self, at: usize) -> bool {
        let second = self.now / S;
        let complained = &mut self.hosts[at].channels.complained;
        if complained.0 != second {
            *complained = (second, 0);
        }
        complained.1 += 1;
        complained.1 <= COMPLAINTS_PER_S
    }

    /// Gives a link the next packet of a level.
    pub(crate) fn pull(
        host: &mut Host,
        link: LinkId,
        index: u32,
        level: Level,
        now: Instant,
    ) -> Option<Packet> {
        let entry = host.links.get_mut(&link)?;
        let channel = host.channels.all.get_mut(&index);
        let Some(channel) = channel.filter(|channel| channel.on == Some(link)) else {
            entry.queue.remove_own(index);
            return None;
        };
        let packet = channel.out.sender_mut().and_then(|sender| sender.poll_level(now, level));
        let bytes = packet.as_ref().map_or(0, Packet::len);
        entry.queue.own_done(index, level, bytes, channel.out.ready());
        if channel.user_waits && !entry.waiting.contains(&index) {
            entry.waiting.push(index);
        }
        packet
    }

    /// What is about to be closed lets go of what may leave.
    fn let_go(&mut self, at: usize, index: u32) {
        let now = self.clock.instant(self.now);
        let host = &mut self.hosts[at];
        let Some(peer) = host.channels.all.get(&index).map(|channel| channel.peer) else { return };
        let Some(link) = host.next_hop(peer, u64::from(index)) else { return };
        let Some(channel) = host.channels.all.get_mut(&index) else { return };
        let Some(entry) = host.links.get_mut(&link) else { return };
        let lane = Lane { pair: u64::from(index), label: 0, level: Level::Normal };
        if let Some(sender) = channel.out.sender_mut() {
            while let Some(packet) = sender.poll_packet(now) {
                entry.queue.push_transit(lane, packet, now);
            }
        }
    }

    /// Whether the user, if it was told to wait, may now go on; counts as told.
    pub(crate) fn user_may_go_on(&mut self, at: usize, index: u32) -> bool {
        let limits = self.scenario.limits;
        let host = &mut self.hosts[at];
        let Some(channel) = host.channels.all.get_mut(&index) else { return false };
        let kept = channel.out.sender().map_or((0, 0), Sender::queued_bytes);
        let was = std::mem::replace(&mut channel.retained, kept.0 + kept.1);
        host.channels.retained = host.channels.retained - was + kept.0 + kept.1;
        let (total, own) = (host.channels.retained, channel.retained);
        let over = !may_hold_more(limits.retransmit_memory, total, own);
        let open = channel.out.sender().is_some();
        if !channel.user_waits || over || !open || kept.0 > limits.channel_queue {
            return false;
        }
        channel.user_waits = false;
        true
    }

    /// Links that channels waited for have room, or are gone.
    pub(crate) fn links_have_room(&mut self, at: usize, waiting: &[u32]) {
        for index in waiting {
            if self.user_may_go_on(at, *index) {
                self.user_writable(at, *index);
            }
        }
    }

    fn want_service(&mut self, at: usize, index: u32) {
        let host = &mut self.hosts[at];
        let Some(channel) = host.channels.all.get_mut(&index) else { return };
        let wants =
            channel.out.wants_service() || channel.inc.wants_service() || channel.user_waits;
        if wants && !std::mem::replace(&mut channel.in_service, true) {
            host.channels.in_service.push(index);
            if host.channels.in_service.len() == 1 {
                let event = Event::Service { host: at as u32, life: host.life };
                self.heap.push(self.now + SERVICE_INTERVAL.as_nanos() as Nanos, event);
            }
        }
    }

    pub(crate) fn service(&mut self, at: usize, life: u32) {
        let host = &mut self.hosts[at];
        if !host.alive || host.life != life {
            return;
        }
        let now = self.clock.instant(self.now);
        for index in std::mem::take(&mut host.channels.in_service) {
            let Some(channel) = self.hosts[at].channels.all.get_mut(&index) else { continue };
            channel.in_service = false;
            let peer = channel.peer;
            let host = &mut self.hosts[at];
            let routed = host.next_hop(peer, u64::from(index)).is_some();
            let hold = !host.channels.table.may_open(peer);
            let Some(channel) = host.channels.all.get_mut(&index) else { continue };
            channel.out.hold_open(hold);
            let missing = channel.inc.handle_timeout(now, routed);
            let unheard = channel.out.handle_timeout(now, routed);
            self.poll_end(at, index);
            self.carry_on(at, index);
            if missing.or(unheard).is_some() {
                self.fail_channel(at, index, ResetReason::Lost);
            }
        }
        self.say_farewells(at);
    }

    /// Tells nodes that can be reached again which channels to them were given up.
    fn say_farewells(&mut self, at: usize) {
        let now = self.clock.instant(self.now);
        let me = self.hosts[at].id;
        let mut packets = Vec::new();
        let host = &mut self.hosts[at];
        let mut farewells = std::mem::take(host.channels.table.farewells());
        while let Some(next) = farewells.poll_packet(now, me, |to| host.next_hop(to, 0).is_some()) {
            packets.push(next);
        }
        let again = farewells.poll_timeout();
        *host.channels.table.farewells() = farewells;
        for (to, packet) in packets {
            self.answer(at, to, packet);
        }
        if again.is_some() {
            self.want_farewells(at);
        }
    }

    /// There is something to be said that belongs to no channel.
    fn want_farewells(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.channels.table.has_farewells() && host.channels.in_service.is_empty() {
            // An index that no channel has: the round of the service is what is wanted.
            host.channels.in_service.push(0);
            let event = Event::Service { host: at as u32, life: host.life };
            self.heap.push(self.now + SERVICE_INTERVAL.as_nanos() as Nanos, event);
        }
    }

    /// Tells the user of the end of a channel if it is time.
    pub(crate) fn poll_end(&mut self, at: usize, index: u32) {
        let now = self.clock.instant(self.now);
        let Some(channel) = self.hosts[at].channels.all.get_mut(&index) else { return };
        if let Some(reason) = channel.inc.poll_end(now) {
            channel.inbox.close(reason);
            self.user_take(at, index);
            self.transmit(at, index);
        }
    }

    /// The user closes a channel.
    pub(crate) fn close_channel(&mut self, at: usize, index: u32, reason: ResetReason) {
        let now = self.clock.instant(self.now);
        self.let_go(at, index);
        let Some(channel) = self.hosts[at].channels.all.get_mut(&index) else { return };
        // Nobody is left to take what waits.
        channel.inbox.clear();
        channel.inc.end();
        if channel.out.close(reason, now) {
            self.hosts[at].channels.table.closing(ChannelIndex(index));
        }
        self.carry_on(at, index);
    }

    /// All channels are closed: the node stops.
    pub(crate) fn close_channels(&mut self, at: usize) {
        let all: Vec<_> = self.hosts[at].channels.all.keys().copied().collect();
        for index in all {
            self.close_channel(at, index, ResetReason::Closed);
        }
    }

    /// A channel cannot go on: its user is told.
    pub(crate) fn fail_channel(&mut self, at: usize, index: u32, reason: ResetReason) {
        if let Some(channel) = self.hosts[at].channels.all.get_mut(&index)
            && channel.inc.end()
        {
            channel.inbox.close(reason);
        }
        self.user_take(at, index);
        self.close_channel(at, index, reason);
    }

    fn forget_if_over(&mut self, at: usize, index: u32) {
        let channels = &mut self.hosts[at].channels;
        let Some(channel) = channels.all.get_mut(&index) else { return };
        let farewell = channel.out.take_farewell();
        let is_over = channel.inc.is_over() || farewell.is_some();
        let over = channel.out.state() == State::Closed && is_over;
        if over && channel.inbox.is_empty() {
            channels.retained -= channel.retained;
            channels.all.remove(&index);
        }
        if over {
            let now = self.clock.instant(self.now);
            channels.table.remove(now, ChannelIndex(index), farewell);
            self.want_farewells(at);
        }
    }

    // ===== from the control plane =====

    pub(crate) fn end_life(&mut self, at: usize, peer: NodeId, life: Incarnation) {
        // A later life may have granted a channel before the tables knew it.
        let gone = self.hosts[at].life_of(peer).is_none();
        let over = |other| other == life || (gone && other > life);
        self.end_lives(at, peer, over, ResetReason::Unreachable);
    }

    pub(crate) fn end_former_lives(&mut self, at: usize, peer: NodeId, life: Incarnation) {
        self.end_lives(at, peer, |other| other < life, ResetReason::Restarted);
        let now = self.clock.instant(self.now);
        self.hosts[at].channels.table.farewells().handle_reachable(now, peer, life);
        self.want_farewells(at);
    }

    fn end_lives(
        &mut self,
        at: usize,
        peer: NodeId,
        is_over: impl Fn(Incarnation) -> bool,
        reason: ResetReason,
    ) {
        for index in self.hosts[at].channels.table.to(peer) {
            let Some(channel) = self.hosts[at].channels.all.get_mut(&index.0) else { continue };
            if !is_over(channel.out.peer_incarnation()) {
                continue;
            }
            match reason {
                ResetReason::Unreachable => channel.out.give_up(reason),
                _ => _ = channel.out.over(),
            }
            if channel.inc.end() {
                channel.inbox.close(reason);
            }
            self.carry_on(at, index.0);
            self.user_take(at, index.0);
        }
    }

    pub(crate) fn routes_changed(&mut self, at: usize, ids: &[NodeId]) {
        let now = self.clock.instant(self.now);
        for id in ids {
            self.hosts[at].channels.table.farewells().handle_route_change(now, *id);
        }
        self.want_farewells(at);
        for index in self.hosts[at].channels.table.all() {
            let Some(channel) = self.hosts[at].channels.all.get_mut(&index.0) else { continue };
            if ids.contains(&channel.peer) {
                channel.out.handle_route_change(now);
                self.carry_on(at, index.0);
            }
        }
    }

    // ===== from the network =====

    pub(crate) fn channel_data(
        &mut self,
        at: usize,
        index: u32,
        header: &RoutedHeader,
        content: &[u8],
    ) {
        let now = self.clock.instant(self.now);
        let Some(channel) = self.hosts[at].channels.all.get_mut(&index) else { return };
        let mut acks: Vec<Piggyback> = Vec::new();
        if let Err(error) = channel.inc.handle_data(header, content, &mut channel.inbox, &mut acks)
        {
            self.checker.malformed(at, &format!("channel: {error}"));
            return self.fail_channel(at, index, ResetReason::Protocol);
        }
        for ack in acks {
            let ack = Ack { next: ack.next, credit: ack.credit, ranges: Vec::new() };
            channel.out.handle_ack(now, &ack, false);
        }
        self.carry_on(at, index);
        let touched = &mut self.hosts[at].channels.touched;
        if !touched.contains(&index) {
            touched.push(index);
        }
    }

    /// The end of a read: users take what it has brought.
    pub(crate) fn end_read(&mut self, at: usize) {
        for index in std::mem::take(&mut self.hosts[at].channels.touched) {
            self.poll_end(at, index);
            self.user_take(at, index);
            self.forget_if_over(at, index);
        }
    }
}
