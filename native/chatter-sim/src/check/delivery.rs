//! What users send and receive: each message once, in order, within its connection and life.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chatter_core::ids::Incarnation;

use super::{Kind, Violations};
use crate::time::{MS, Nanos, S};

/// A message takes at most so long as long as there is a route: silence is noticed after 1 s, what is
/// lost is probed for after at most 2 s, and that may get lost as well.
pub(super) const LATEST: Nanos = 8 * S;

/// What a user writes into a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Who wrote it.
    pub from: usize,
    /// For whom.
    pub to: usize,
    /// The life of the writer.
    pub from_life: Incarnation,
    /// The life it is for.
    pub to_life: Incarnation,
    /// The writer's number of the connection.
    pub session: u64,
    /// Its number in the connection, from 1.
    pub counter: u64,
    /// Its bytes came as they were sent.
    pub whole: bool,
}

/// A connection as one of its ends sees it.
struct Session {
    at: usize,
    peer: usize,
    peer_life: Incarnation,
    up: bool,
    sent: u64,
    /// When the messages were sent that the other end has not received, the first one's number first.
    under_way: VecDeque<(u64, Nanos)>,
    /// The next message from the other end.
    next: u64,
    /// Messages before `next` that have not come.
    missing: BTreeSet<u64>,
    /// The other end's number for the connection, once a message has told it.
    other: Option<u64>,
}

/// All connections.
pub(super) struct Deliveries {
    lives: Vec<Incarnation>,
    sessions: BTreeMap<u64, Session>,
    /// Which of its connections each node's users see another node over.
    up: BTreeMap<(usize, usize), u64>,
    times: Vec<u64>,
}

impl Deliveries {
    pub(super) fn new(nodes: usize) -> Self {
        let lives = vec![Incarnation(0); nodes];
        Self { lives, sessions: BTreeMap::new(), up: BTreeMap::new(), times: vec![0; 1_000] }
    }

    pub(super) fn life(&mut self, at: usize, incarnation: Incarnation) {
        self.lives[at] = incarnation;
    }

    pub(super) fn died(&mut self, now: Nanos, at: usize, violations: &mut Violations) {
        let over: Vec<_> =
            self.up.iter().filter(|((from, _), _)| *from == at).map(|(_, s)| *s).collect();
        self.up.retain(|(from, _), _| *from != at);
        for session in over {
            self.end(now, session, violations);
        }
    }

    pub(super) fn up(
        &mut self,
        now: Nanos,
        (at, peer): (usize, usize),
        peer_life: Incarnation,
        session: u64,
        violations: &mut Violations,
    ) {
        if self.up.insert((at, peer), session).is_some() {
            let what = format!("n{at}: connection to n{peer} up while another one was");
            violations.report(now, Kind::UpTwice, what);
        }
        if peer_life > self.lives[peer] {
            let what = format!("n{at}: n{peer} up in a life {peer_life} that has not begun");
            violations.report(now, Kind::StaleLife, what);
        }
        let new = Session {
            at,
            peer,
            peer_life,
            up: true,
            sent: 0,
            under_way: VecDeque::new(),
            next: 1,
            missing: BTreeSet::new(),
            other: None,
        };
        self.sessions.insert(session, new);
    }

    pub(super) fn down(
        &mut self,
        now: Nanos,
        (at, peer): (usize, usize),
        session: u64,
        violations: &mut Violations,
    ) {
        if self.up.remove(&(at, peer)) != Some(session) {
            let what = format!("n{at}: connection {session} to n{peer} down, which was not up");
            violations.report(now, Kind::DownTwice, what);
        }
        self.end(now, session, violations);
    }

    fn end(&mut self, now: Nanos, session: u64, violations: &mut Violations) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.up = false;
            session.report_missing(now, violations);
        }
    }

    pub(super) fn sent(&mut self, now: Nanos, session: u64) -> u64 {
        let Some(session) = self.sessions.get_mut(&session) else { return 0 };
        session.sent += 1;
        session.under_way.push_back((session.sent, now));
        session.sent
    }

    /// How long a message of the other end's connection was under way.
    pub(super) fn took(&mut self, now: Nanos, message: &Message) -> Nanos {
        let Some(session) = self.sessions.get_mut(&message.session) else { return 0 };
        let mut took = 0;
        while let Some((_, at)) =
            session.under_way.pop_front_if(|(number, _)| *number <= message.counter)
        {
            took = now - at;
        }
        let slot = (took / (10 * MS)).min(self.times.len() as u64 - 1);
        self.times[slot as usize] += 1;
        took
    }

    /// How many messages took how long, in steps of 10 ms.
    pub(super) fn times(&self) -> &[u64] {
        &self.times
    }

    pub(super) fn delivered(
        &mut self,
        now: Nanos,
        at: usize,
        number: u64,
        message: &Message,
        violations: &mut Violations,
    ) {
        let Message { from, to, session: other, counter, .. } = *message;
        let mut report = |kind, why: &str| {
            let what = format!("n{at} from n{from}, connection {other}, message {counter}: {why}");
            violations.report(now, kind, what);
        };
        if to != at || !message.whole {
            report(Kind::Altered, "not what was sent");
        }
        let current = self.lives[at];
        let Some(session) = self.sessions.get_mut(&number) else {
            return report(Kind::OutsideConnection, "before the connection was up");
        };
        if !session.up || session.peer != from || session.at != at {
            report(Kind::OutsideConnection, "its connection is not up");
        }
        if message.from_life != session.peer_life {
            report(Kind::StaleLife, "of another life than the connection is with");
        }
        if message.to_life != current {
            report(Kind::StaleLife, "for another life");
        }
        if *session.other.get_or_insert(other) != other {
            report(Kind::Mixed, "of another connection than those before");
        }
        if counter == session.next {
            session.next += 1;
        } else if counter > session.next {
            session.missing.extend(session.next..counter);
            session.next = counter + 1;
        } else if session.missing.remove(&counter) {
            report(Kind::Swapped, "came after a later one");
        } else {
            report(Kind::Repeated, "came again");
        }
    }

    pub(super) fn received(&self, pair: (usize, usize)) -> Option<u64> {
        let session = self.sessions.get(self.up.get(&pair)?)?;
        Some(session.next - 1)
    }

    pub(super) fn check_complete(&mut self, now: Nanos, violations: &mut Violations) {
        let mut partners = BTreeMap::new();
        for (number, session) in &mut self.sessions {
            if session.up {
                session.report_missing(now, violations);
            }
            let Some(other) = session.other else { continue };
            if let Some(first) = partners.insert(other, *number) {
                let what = format!("connection {other} came in over {first} and {number}");
                violations.report(now, Kind::Mixed, what);
            }
        }
        for ((at, peer), number) in &self.up {
            let Some(other) = self.up.get(&(*peer, *at)) else { continue };
            let (Some(here), Some(there)) = (self.sessions.get(number), self.sessions.get(other))
            else {
                continue;
            };
            if here.next - 1 < there.sent {
                let (got, sent) = (here.next - 1, there.sent);
                let what = format!("n{at} from n{peer}: {got} messages of {sent}");
                violations.report(now, Kind::Lost, what);
            }
        }
    }
}

impl Session {
    fn report_missing(&mut self, now: Nanos, violations: &mut Violations) {
        for counter in std::mem::take(&mut self.missing) {
            let (at, peer) = (self.at, self.peer);
            let what =
                format!("n{at} from n{peer}: message {counter} did not come, later ones did");
            violations.report(now, Kind::Lost, what);
        }
    }
}
