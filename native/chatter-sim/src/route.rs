//! Routed packets: for a channel here, or to be passed on.

use chatter_core::channel::table::OpenVerdict;
use chatter_core::ids::{ChannelIndex, NodeId};
use chatter_core::relay::{self, Content, Routed};
use chatter_core::sched::Lane;
use chatter_core::wire::data::{DropReason, Open, Reset, ResetReason};
use chatter_core::wire::packet::Packet as OutPacket;
use chatter_core::wire::routed::{self, FLAG_MARKED, RoutedHeader};
use chatter_core::wire::{Packet, PacketType, next_packet};

use crate::heap::Event;
use crate::network::Record;
use crate::time::MS;
use crate::world::World;

impl World {
    pub(crate) fn routed(&mut self, at: usize, packet: Packet<'_>) {
        match relay::read(packet, self.hosts[at].id) {
            Ok(Routed::Mine(header, content)) => self.mine(at, &header, content),
            Ok(Routed::Transit(header)) => self.transit(at, packet, &header),
            Ok(Routed::Refused(header, reason)) => self.refuse(at, packet.kind, &header, reason),
            Err(error) => self.checker.malformed(at, &error.to_string()),
        }
    }

    fn mine(&mut self, at: usize, header: &RoutedHeader, content: Content<'_>) {
        let now = self.clock.instant(self.now);
        let me = self.hosts[at].id;
        let channels = &mut self.hosts[at].channels;
        let known = channels.table.get(header.channel, header.source).map(|index| index.0);
        match content {
            Content::Data(content) => match known {
                Some(index) => self.channel_data(at, index, header, content),
                None => {
                    if self.may_complain(at) {
                        self.answer(at, header.source, relay::unknown_channel(me, header));
                    }
                }
            },
            Content::Ack(ack) => {
                if let Some(index) = known
                    && let Some(channel) = channels.all.get_mut(&index)
                {
                    channel.out.handle_ack(now, &ack, header.flags & FLAG_MARKED != 0);
                    self.carry_on(at, index);
                }
            }
            Content::Open(open) => self.open(at, header.source, &open),
            Content::Opened(opened) => match known {
                Some(index) => {
                    let Some(channel) = channels.all.get_mut(&index) else { return };
                    if channel.out.handle_opened(&opened) {
                        channel.inc.open(opened.index);
                        let here = ChannelIndex(index);
                        let life = opened.incarnation;
                        channels.table.learn(here, life, opened.index, opened.epoch);
                        self.user_opened(at, index);
                    } else if channel.out.is_stranger(&opened) {
                        let reset = relay::refuse(me, header, opened.index, ResetReason::Unknown);
                        self.answer(at, header.source, reset);
                    }
                }
                None => {
                    let reset = relay::refuse(me, header, opened.index, ResetReason::Unknown);
                    self.answer(at, header.source, reset);
                }
            },
            Content::Reset(reset) => self.reset(at, header, &reset),
            Content::ResetAck(reset) => {
                let found = channels.table.find_reset(header.source, &reset).map(|index| index.0);
                if let Some(index) = found
                    && let Some(channel) = channels.all.get_mut(&index)
                {
                    channel.out.handle_reset_ack();
                    self.carry_on(at, index);
                } else {
                    channels.table.farewells().handle_confirmed(header.source, &reset);
                }
                self.take_up_open(at, header.source);
            }
            Content::Unreachable(notice) => {
                let sent = channels.table.find_sent(&notice.quoted).map(|index| index.0);
                if let Some(channel) = sent.and_then(|index| channels.all.get_mut(&index)) {
                    channel.out.handle_unreachable(now, notice.quoted.number);
                }
            }
            Content::CastAck(_) | Content::None => {}
        }
    }

    fn open(&mut self, at: usize, source: NodeId, open: &Open) {
        let now = self.clock.instant(self.now);
        let life = self.hosts[at].life_of(source);
        let table = &mut self.hosts[at].channels.table;
        match table.judge_open(now, source, open, life) {
            OpenVerdict::Known(index) => self.confirm_open(at, index.0),
            OpenVerdict::Stale | OpenVerdict::Wait => {}
            OpenVerdict::New(former) => {
                if !former.is_empty() {
                    self.end_former_lives(at, source, open.incarnation);
                }
                self.grant(at, source, open);
            }
        }
    }

    /// Takes up an OPEN that had to wait.
    pub(crate) fn take_up_open(&mut self, at: usize, source: NodeId) {
        if let Some(open) = self.hosts[at].channels.table.take_held(source) {
            self.open(at, source, &open);
        }
    }

    fn grant(&mut self, at: usize, source: NodeId, open: &Open) {
        let me = self.hosts[at].id;
        let Some(index) = self.add_channel(at, source, Err(open)) else {
            let asked = RoutedHeader::to(me, source, ChannelIndex::UNKNOWN);
            let reset = relay::refuse(me, &asked, open.index, ResetReason::Refused);
            return self.answer(at, source, reset);
        };
        if self.user_accepts(at, index.0) {
            self.confirm_open(at, index.0);
        } else {
            self.close_channel(at, index.0, ResetReason::Refused);
        }
    }

    fn confirm_open(&mut self, at: usize, index: u32) {
        if let Some(channel) = self.hosts[at].channels.all.get_mut(&index) {
            channel.out.confirm_open();
            self.carry_on(at, index);
        }
    }

    fn reset(&mut self, at: usize, header: &RoutedHeader, reset: &Reset) {
        let now = self.clock.instant(self.now);
        let channels = &mut self.hosts[at].channels;
        let found = channels.table.find_reset(header.source, reset).map(|index| index.0);
        if let Some(index) = found
            && let Some(channel) = channels.all.get_mut(&index)
        {
            channel.out.handle_reset(reset);
            channel.inc.handle_reset(now, reset);
            self.poll_end(at, index);
            self.carry_on(at, index);
            return self.take_up_open(at, header.source);
        }
        channels.table.farewells().handle_confirmed(header.source, reset);
        self.take_up_open(at, header.source);
        let answer = relay::confirm_reset(self.hosts[at].id, header, reset);
        self.answer(at, header.source, answer);
    }

    // ===== relaying =====

    fn transit(&mut self, at: usize, packet: Packet<'_>, header: &RoutedHeader) {
        let faults = self.hosts[at].now;
        if self.rng.chance(faults.drop_ppm) {
            self.counts.relay_drops += 1;
            return;
        }
        if self.rng.chance(faults.double_ppm) {
            self.forward(at, packet, header);
        }
        if self.rng.chance(faults.reorder_ppm) {
            let bytes = relay::forward(packet, header).to_vec();
            let record = self.net.keep(Record::Data(bytes));
            let event = Event::Transit { host: at as u32, life: self.hosts[at].life, record };
            let wait = self.rng.range(MS, 30 * MS);
            self.heap.push(self.now + wait, event);
            return;
        }
        self.forward(at, packet, header);
    }

    fn forward(&mut self, at: usize, packet: Packet<'_>, header: &RoutedHeader) {
        let lane = relay::lane(packet.kind, header);
        let path = relay::path_hash(&lane);
        let Some(link) = self.hosts[at].next_hop(header.destination, path) else {
            return self.refuse(at, packet.kind, header, DropReason::NoRoute);
        };
        let now = self.clock.instant(self.now);
        if let Some(entry) = self.hosts[at].links.get_mut(&link) {
            entry.queue.push_transit(lane, relay::forward(packet, header), now);
            self.counts.relayed += 1;
        }
        self.mark_dirty(at, link);
    }

    /// Hands on what waited on a link that is gone, where there is another way.
    pub(crate) fn rescue_transit(&mut self, at: usize, packets: Vec<(Lane, OutPacket)>) {
        let now = self.clock.instant(self.now);
        for (lane, packet) in packets {
            let host = &mut self.hosts[at];
            let path = relay::path_hash(&lane);
            let way = routed::destination(&packet).and_then(|to| host.next_hop(to, path));
            let Some(link) = way else {
                self.counts.relay_drops += 1;
                continue;
            };
            if let Some(entry) = host.links.get_mut(&link) {
                entry.queue.push_transit(lane, packet, now);
            }
            self.mark_dirty(at, link);
        }
    }

    /// A packet that was held up goes on; its hop has been counted.
    pub(crate) fn late_transit(&mut self, at: usize, life: u32, record: u32) {
        let Some(Record::Data(bytes)) = self.net.release_kept(record) else { return };
        if !self.hosts[at].alive || self.hosts[at].life != life {
            return;
        }
        let mut rest = bytes.as_slice();
        if let Ok(Some(packet)) = next_packet(&mut rest)
            && let Ok(Routed::Transit(header)) = relay::read(packet, self.hosts[at].id)
        {
            self.forward(at, packet, &header);
        }
    }

    fn refuse(&mut self, at: usize, kind: PacketType, header: &RoutedHeader, why: DropReason) {
        self.counts.relay_drops += 1;
        let notice: Option<OutPacket> = relay::unreachable(self.hosts[at].id, kind, header, why);
        if let Some(notice) = notice
            && self.may_complain(at)
        {
            self.answer(at, header.source, notice);
        }
    }
}
