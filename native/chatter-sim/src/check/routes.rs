//! Routes against the network as it is, by an algorithm of its own.

use std::collections::{BTreeMap, VecDeque};

use super::Kind;

/// Farther than any way.
const FAR: u64 = u64::MAX / 4;

/// What it costs to pass through a node that asks not to be used as a relay.
const OVERLOAD: u64 = 1 << 24;

/// The network as it is.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Who lives.
    pub alive: Vec<bool>,
    /// Who is passed through only where there is no other way.
    pub overload: Vec<bool>,
    /// For each node, its neighbours and what it costs to send to them.
    pub links: Vec<Vec<(usize, u64)>>,
}

/// What a node says about the way to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The cost of the whole way.
    pub distance: u64,
    /// The neighbours that packets may be given to.
    pub next: Vec<usize>,
}

/// What all nodes say, by destination.
pub type Views = Vec<BTreeMap<usize, View>>;

impl Truth {
    /// The distances from a node, by Bellman's and Ford's algorithm with a queue.
    pub fn distances(&self, from: usize) -> Vec<u64> {
        let mut distance = vec![FAR; self.links.len()];
        let mut queue = VecDeque::from([from]);
        let mut queued = vec![false; self.links.len()];
        distance[from] = 0;
        while let Some(at) = queue.pop_front() {
            queued[at] = false;
            let passed = if at == from { 0 } else { self.passing(at) };
            for (to, cost) in &self.links[at] {
                let way = distance[at] + passed + cost;
                if way < distance[*to] {
                    distance[*to] = way;
                    if !std::mem::replace(&mut queued[*to], true) {
                        queue.push_back(*to);
                    }
                }
            }
        }
        distance
    }

    fn passing(&self, at: usize) -> u64 {
        if self.overload[at] { OVERLOAD } else { 0 }
    }

    /// Whether two nodes can reach each other.
    pub fn has_route(&self, from: usize, to: usize) -> bool {
        self.alive[from] && self.alive[to] && self.distances(from)[to] < FAR
    }

    /// Compares what the nodes say with the network. Follows the next hops of up to so many pairs.
    pub fn check(&self, views: &Views, follow: usize) -> Vec<(Kind, String)> {
        let n = self.links.len();
        let mut found = Vec::new();
        let distances: Vec<_> = (0..n).map(|from| self.distances(from)).collect();
        for from in (0..n).filter(|at| self.alive[*at]) {
            for to in (0..n).filter(|to| *to != from) {
                self.check_view((from, to), views[from].get(&to), &distances, &mut found);
            }
        }
        let pairs = (0..n).flat_map(|from| (0..n).map(move |to| (from, to)));
        let step = (n * n / follow.max(1)).max(1);
        for (from, to) in pairs.step_by(step).filter(|(from, to)| from != to && self.alive[*from]) {
            if goes_round(views, from, to) {
                found.push((Kind::Loop, format!("from n{from} to n{to}")));
            }
        }
        found
    }

    fn check_view(
        &self,
        (from, to): (usize, usize),
        view: Option<&View>,
        distances: &[Vec<u64>],
        found: &mut Vec<(Kind, String)>,
    ) {
        let wanted = distances[from][to];
        let Some(view) = view else {
            if wanted < FAR {
                found.push((Kind::WrongRoute, format!("n{from}: none to n{to} at {wanted}")));
            }
            return;
        };
        if view.distance != wanted {
            let (said, wanted) = (view.distance, Far(wanted));
            found.push((Kind::WrongRoute, format!("n{from} to n{to}: {said}, and it is {wanted}")));
            return;
        }
        let mut next: Vec<_> = self.links[from]
            .iter()
            .filter(|(via, cost)| {
                let passed = if *via == to { 0 } else { self.passing(*via) };
                cost + passed + distances[*via][to] == wanted
            })
            .map(|(via, _)| *via)
            .collect();
        next.sort_unstable();
        if view.next != next {
            let said = &view.next;
            let what = format!("n{from} to n{to}: by {said:?}, and shortest is by {next:?}");
            found.push((Kind::WrongRoute, what));
        }
    }
}

struct Far(u64);

impl std::fmt::Display for Far {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 >= FAR { f.write_str("out of reach") } else { self.0.fmt(f) }
    }
}

/// Whether a packet could meet a node twice, whichever next hops it is given to.
fn goes_round(views: &Views, from: usize, to: usize) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnTheWay,
        Done,
    }
    let mut marks = vec![Mark::New; views.len()];
    let mut stack = vec![(from, 0)];
    marks[from] = Mark::OnTheWay;
    while let Some((at, place)) = stack.pop() {
        let next = views[at].get(&to).and_then(|view| view.next.get(place));
        let known = |next: &usize| at != to && *next < views.len();
        let Some(next) = next.copied().filter(known) else {
            marks[at] = Mark::Done;
            continue;
        };
        stack.push((at, place + 1));
        match marks[next] {
            Mark::OnTheWay => return true,
            Mark::New => {
                marks[next] = Mark::OnTheWay;
                stack.push((next, 0));
            }
            Mark::Done => {}
        }
    }
    false
}
