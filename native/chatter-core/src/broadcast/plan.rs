//! Who sends to whom: the pure answer of one node for the targets it is responsible for.

use std::collections::BTreeMap;

use crate::ids::NodeId;
use crate::routes::ForwardingTable;
use crate::wire::bcast::Target;

/// What one node does with a list of targets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Each neighbour that gets the messages, at most once, with the targets it becomes responsible for.
    pub sends: Vec<(NodeId, Vec<Target>)>,
    /// Targets without a route.
    pub unreachable: Vec<Target>,
}

/// Splits `targets` (without this node) such that no link carries the messages twice.
///
/// Targets are grouped by the next hop to them, and every group goes over its link. Where the group is
/// the neighbour alone, the work is shared: as long as such neighbours are left, the first of them gets
/// the messages and half of the others, as far as it has links to them itself. In a full mesh of N nodes
/// that makes N - 1 sends in ⌈log2 N⌉ rounds.
pub fn plan(table: &ForwardingTable, targets: &[Target]) -> Plan {
    let mut plan = Plan::default();
    let mut groups: BTreeMap<NodeId, Vec<Target>> = BTreeMap::new();
    let mut pool: Vec<Target> = Vec::new();
    for target in targets {
        if target.direct && table.link_to(target.id).is_some() {
            pool.push(*target);
            continue;
        }
        match table.first_hop(target.id) {
            Some(hop) => groups.entry(hop).or_default().push(Target { direct: false, ..*target }),
            None => plan.unreachable.push(Target { direct: false, ..*target }),
        }
    }
    for (hop, group) in groups {
        match group[..] {
            [only] if only.id == hop => pool.push(only),
            // It may be in the pool as well, asked for directly: one packet has both.
            _ => plan.sends.push((hop, group)),
        }
    }
    pool.retain(|target| {
        let known = plan.sends.iter_mut().find(|(hop, _)| *hop == target.id);
        known.map(|(_, group)| group.push(Target { direct: false, ..*target })).is_none()
    });
    halve(table, pool, &mut plan.sends);
    plan
}

fn halve(table: &ForwardingTable, mut pool: Vec<Target>, sends: &mut Vec<(NodeId, Vec<Target>)>) {
    while !pool.is_empty() {
        let share = pool.len().div_ceil(2) - 1;
        let head = pool.remove(0);
        let mut group = vec![Target { direct: false, ..head }];
        pool.retain(|other| {
            let taken = group.len() <= share && table.are_linked(head.id, other.id);
            if taken {
                group.push(Target { direct: true, ..*other });
            }
            !taken
        });
        sends.push((head.id, group));
    }
}
