//! From links and LSPs to a forwarding table, and what that means for nodes.

use std::sync::Arc;

use super::Control;
use super::config::ms;
use super::event::ControlEvent;
use crate::ids::{LinkId, NodeId};
use crate::routes::{ForwardingTable, Route};
use crate::wire::lsp::Neighbour;

impl Control {
    /// Computes paths if something has changed: at once if it is an own link, else throttled.
    pub(super) fn run_spf_if_due(&mut self) {
        if std::mem::take(&mut self.first_hops_changed) {
            let first_hops = self.usable_links();
            if first_hops != self.first_hops {
                self.first_hops = first_hops;
                self.run_spf();
            }
        }
        if self.spf_pending && self.spf.next(self.now) <= self.now {
            self.run_spf();
        }
    }

    /// The LSP of `origin` was stored. If it is a neighbour, that may begin or end the use of its link.
    pub(super) fn check_neighbour(&mut self, origin: NodeId) {
        let Some(link) = self.by_peer.get(&origin) else { return };
        let Some(adjacency) = self.links.get(link) else { return };
        if self.lsdb.supersede(origin, adjacency.peer.incarnation) {
            self.spf_pending = true;
        }
        self.first_hops_changed = true;
    }

    /// This life of a node is over.
    pub(super) fn node_over(&mut self, id: NodeId) {
        self.nodes.over(id);
        self.events.append(self.nodes.events());
    }

    /// Ends the holds of lost nodes that have run out.
    pub(super) fn expire_nodes(&mut self) {
        self.nodes.expire(self.now);
        self.events.append(self.nodes.events());
    }

    /// Publishes an empty table and reports all nodes as down: this node leaves, or has been given up.
    pub(super) fn forget_routes(&mut self) {
        self.publish(ForwardingTable::default());
        self.nodes.all_over();
        self.events.append(self.nodes.events());
    }

    /// The links that lead to a neighbour whose present life has an LSP here. Whether a link is there is
    /// seen at the link itself: at this end because it is up, at the other because it said SYNCED.
    fn usable_links(&self) -> Vec<(Neighbour, LinkId)> {
        let usable = |(id, link): (&NodeId, &LinkId)| {
            let adjacency = self.links.get(link).filter(|adjacency| adjacency.synced)?;
            let lsp = self.lsdb.get(*id).filter(|lsp| !lsp.purge)?;
            let incarnation = lsp.incarnation;
            let neighbour = Neighbour { id: *id, metric: adjacency.metric(), incarnation };
            let same_life = incarnation == adjacency.peer.incarnation;
            same_life.then_some((neighbour, *link))
        };
        self.by_peer.iter().filter_map(usable).collect()
    }

    fn run_spf(&mut self) {
        self.spf_pending = false;
        self.spf.fire(self.now);
        let mut table = ForwardingTable::compute(self.me.id, &self.first_hops, &self.lsdb);
        if !self.statics.is_empty() {
            table.follow(&self.statics, &self.first_hops, self.lsdb.graph());
        }
        if table == *self.table {
            return;
        }
        let changed = self.changed_routes(&table);
        self.nodes.update(self.now, &table, ms(self.config.unreachable_ms));
        self.events.append(self.nodes.events());
        if !changed.is_empty() {
            self.events.push_back(ControlEvent::RouteChanged { ids: changed });
        }
        self.publish(table);
        self.end_outlived_links();
    }

    /// The nodes to which packets under way may have been lost.
    fn changed_routes(&self, table: &ForwardingTable) -> Vec<NodeId> {
        let is_changed = |id: NodeId, new: &Route| match self.table.route(id) {
            None => true,
            Some(old) => {
                let longer = old.shape != new.shape && new.distance >= old.distance;
                old.next_hops != new.next_hops || longer
            }
        };
        let mut ids: Vec<_> = table
            .routes()
            .filter(|(id, new)| self.nodes.is_up(*id, new.incarnation) && is_changed(*id, new))
            .map(|(id, _)| id)
            .collect();
        ids.sort_unstable();
        ids
    }

    fn publish(&mut self, table: ForwardingTable) {
        self.table = Arc::new(table);
        self.table_changed = true;
    }
}
