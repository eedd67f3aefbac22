//! Links coming and going, and which of two to keep.

use super::Control;
use super::adjacency::Adjacency;
use super::event::{CloseReason, ControlEvent, DisconnectTarget, LinkUp};
use crate::dialer::NeighbourSpec;
use crate::ids::{LinkId, NodeId};
use crate::wire::PacketType;
use crate::wire::hello::{BYE_LEN, ByeReason};
use crate::wire::packet_header;

impl Control {
    pub(super) fn link_up(&mut self, up: LinkUp) {
        if self.links.contains_key(&up.link) {
            return;
        }
        let link = up.link;
        if self.stopped {
            return self.refuse(link, CloseReason::Stopped);
        }
        if up.peer.id == self.me.id {
            return self.own_id(&up);
        }
        if self.refuse_other_life(&up) {
            return;
        }
        let peer = up.peer.id;
        let former = self.by_peer.get(&peer).copied();
        if former.is_none() && self.links.len() >= self.config.max_links {
            if let Some(neighbour) = up.neighbour {
                self.dialer.dial_failed(self.now, neighbour, &mut self.rng);
            }
            return self.refuse(link, CloseReason::TooManyLinks);
        }
        let metric = self.dialer.link_up(self.now, peer, &up.peer.name, up.neighbour);
        let Some(former) = former else { return self.adopt(up, metric) };
        let Some(kept) = self.links.get(&former) else { return };
        if self.is_preferred(&up, kept) {
            self.replace(former, up, metric);
        } else {
            self.refuse(link, CloseReason::Duplicate);
        }
    }

    /// Ends the use of a link: with a `reason` it is closed from here.
    pub(super) fn drop_link(&mut self, link: LinkId, reason: Option<CloseReason>) {
        let Some(adjacency) = self.links.remove(&link) else { return };
        let peer = adjacency.peer.id;
        self.by_peer.remove(&peer);
        self.told_down(link, peer, reason);
        self.dialer.link_down(self.now, peer, &mut self.rng);
        if adjacency.is_told() {
            self.origination.want_bad();
        }
        self.first_hops_changed = true;
    }

    /// Ends silent links, and probes the others when due.
    pub(super) fn check_links(&mut self) {
        let mut silent = Vec::new();
        for (link, adjacency) in &mut self.links {
            if adjacency.hold_deadline() <= self.now {
                silent.push(*link);
            } else if adjacency.tick(self.now, &self.config) {
                self.pending.insert(*link);
            }
        }
        for link in silent {
            self.drop_link(link, Some(CloseReason::HoldExpired));
        }
    }

    /// The node that fulfils a wish already.
    pub(super) fn linked_as(&self, spec: &NeighbourSpec) -> Option<NodeId> {
        let NeighbourSpec::Name(name) = spec else { return None };
        let peers = self.links.values().map(|adjacency| &adjacency.peer);
        peers.filter(|peer| peer.name == *name).map(|peer| peer.id).next()
    }

    /// Sets the wanted metric of the link to a node, should there be one.
    pub(super) fn set_metric(&mut self, node: NodeId, metric: Option<u32>) {
        let Some(link) = self.by_peer.get(&node) else { return };
        let Some(adjacency) = self.links.get_mut(link) else { return };
        if metric.is_some() && adjacency.configured_metric != metric {
            adjacency.configured_metric = metric;
            self.first_hops_changed = true;
            self.origination.want_good(self.now);
        }
    }

    pub(super) fn disconnect_target(&mut self, target: &DisconnectTarget) {
        let node = match target {
            DisconnectTarget::Spec(spec) => {
                let linked = self.linked_as(spec);
                self.dialer.remove(spec).or(linked)
            }
            DisconnectTarget::Node(node) => Some(*node),
        };
        let Some(link) = node.and_then(|node| self.by_peer.get(&node).copied()) else {
            if let DisconnectTarget::Node(node) = target {
                self.dialer.remove_node(*node, "");
            }
            return;
        };
        if let (DisconnectTarget::Node(node), Some(adjacency)) = (target, self.links.get(&link)) {
            self.dialer.remove_node(*node, &adjacency.peer.name);
        }
        self.say_bye(link, ByeReason::Disconnect);
        self.drop_link(link, Some(CloseReason::Disconnect));
    }

    /// Leaves the network for good.
    pub(super) fn leave(&mut self) {
        self.originate(true);
        self.dialer.clear();
        let links: Vec<_> = self.links.keys().copied().collect();
        for link in links {
            if let Some(packet) = self.lsdb.packet(self.now, self.me.id) {
                self.farewell.push_back((link, packet));
            }
            self.say_bye(link, ByeReason::Stop);
            self.drop_link(link, Some(CloseReason::Stopped));
        }
        self.first_hops.clear();
        self.forget_routes();
        self.stopped = true;
    }

    /// Of two links to the same life of a node, both ends keep the one that the node with the lower id
    /// dialled; of two that the same node dialled, the later.
    fn is_preferred(&self, new: &LinkUp, kept: &Adjacency) -> bool {
        if new.we_dialled == kept.we_dialled {
            return new.dial_seq > kept.dial_seq;
        }
        new.we_dialled == (self.me.id < new.peer.id)
    }

    fn adopt(&mut self, up: LinkUp, metric: Option<u32>) {
        let (link, peer, incarnation) = (up.link, up.peer.id, up.peer.incarnation);
        let mut adjacency = Adjacency::new(self.now, up, &self.config);
        adjacency.configured_metric = metric;
        self.links.insert(link, adjacency);
        self.by_peer.insert(peer, link);
        self.events.push_back(ControlEvent::LinkUp { link, peer });
        if self.lsdb.supersede(peer, incarnation) {
            self.spf_pending = true;
            self.node_over(peer);
        }
        self.check_neighbour(peer);
        self.pending.insert(link);
    }

    /// Takes a second link to the same life in place of the first.
    fn replace(&mut self, former: LinkId, up: LinkUp, metric: Option<u32>) {
        let (link, peer) = (up.link, up.peer.id);
        self.adopt(up, metric);
        let was_told = self.links.remove(&former).is_some_and(|former| former.is_told());
        self.told_down(former, peer, Some(CloseReason::Duplicate));
        self.first_hops_changed = true;
        if let Some(adjacency) = self.links.get_mut(&link) {
            adjacency.successor = was_told;
        }
    }

    fn told_down(&mut self, link: LinkId, peer: NodeId, reason: Option<CloseReason>) {
        self.pending.remove(&link);
        if let Some(reason) = reason {
            self.refuse(link, reason);
        }
        self.events.push_back(ControlEvent::LinkDown { link, peer });
        self.gone_after_held_up(link);
    }

    pub(super) fn refuse(&mut self, link: LinkId, reason: CloseReason) {
        self.events.push_back(ControlEvent::CloseLink { link, reason });
    }

    fn own_id(&mut self, up: &LinkUp) {
        if let Some(neighbour) = up.neighbour {
            self.dialer.stop(neighbour);
        }
        if up.peer.incarnation == self.me.incarnation {
            return self.refuse(up.link, CloseReason::OwnId);
        }
        self.refuse(up.link, CloseReason::Clash);
        self.name_clash(up.peer.incarnation);
    }

    pub(super) fn say_bye(&mut self, link: LinkId, reason: ByeReason) {
        let mut packet = packet_header(PacketType::Bye, BYE_LEN).to_vec();
        packet.extend_from_slice(&reason.to_bytes());
        self.farewell.push_back((link, packet));
    }
}
