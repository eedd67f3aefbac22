//! The users of a host: they open connections, greet each other, send and take messages, as
//! `dist_util` and the processes of a real node do.

use std::collections::BTreeMap;

use chatter_core::channel::life::State;
use chatter_core::channel::options::SendOptions;
use chatter_core::ids::Incarnation;
use chatter_core::wire::data::ResetReason;

use crate::check::Message;
use crate::heap::Event;
use crate::inbox::{self, Item, MESSAGE_LEN};
use crate::time::{MS, Nanos, S};
use crate::world::{Mutant, World};

/// How long a connection may take to come up (`net_setuptime`).
const SETUP_TIME: Nanos = 7 * S;

/// How long a user waits until it tries to connect again.
const RETRY: Nanos = 200 * MS;

/// The greetings of those who ask for a connection, and of those who are asked.
const HELLO: u8 = 1;
const WELCOME: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Asked for; waits to be opened, and then for the greeting of the other end.
    Asking,
    /// Granted; waits for the greeting of the other end.
    Granted,
    /// The users see each other.
    Up,
}

struct Connection {
    peer: usize,
    stage: Stage,
    session: u64,
    since: Nanos,
    full: bool,
    last: Option<Message>,
}

/// The connections of the users of a host.
#[derive(Default)]
pub(crate) struct Users {
    /// By channel.
    connections: BTreeMap<u32, Connection>,
    /// The channel over which the users see another node.
    up: BTreeMap<usize, u32>,
    /// Whom they want to see, and when they try again.
    wanted: Vec<(usize, Nanos)>,
    /// A planted defect holds a message back.
    withheld: Option<(u64, Message)>,
}

impl Users {
    /// How many connections are up, and how many there are.
    pub(crate) fn figures(&self) -> (usize, usize) {
        (self.up.len(), self.connections.len())
    }

    /// Whether the users see a node.
    pub(crate) fn sees(&self, peer: usize) -> bool {
        self.up.contains_key(&peer)
    }

    /// Whether there is a connection to a node, up or not yet.
    fn knows(&self, peer: usize) -> bool {
        self.connections.values().any(|connection| connection.peer == peer)
    }

    fn is_asking(&self, peer: usize) -> bool {
        let asking = |c: &Connection| c.peer == peer && c.stage == Stage::Asking;
        self.connections.values().any(asking)
    }
}

impl World {
    pub(crate) fn users_begin(&mut self, at: usize) {
        let wanted = self.scenario.pairs.iter().filter(|pair| pair[0] == at);
        let wanted: Vec<_> = wanted.map(|pair| (pair[1], 0)).collect();
        self.hosts[at].users.wanted = wanted;
        if self.scenario.pairs.iter().any(|pair| pair.contains(&at)) {
            let first = self.rng.below(self.scenario.load.every);
            let event = Event::Load { host: at as u32, life: self.hosts[at].life };
            self.heap.push(self.now + first, event);
        }
    }

    pub(crate) fn users_die(&mut self, at: usize) {
        self.hosts[at].users = Users::default();
        self.hosts[at].channels.all.clear();
    }

    /// The users of a host get their turn: they connect, give up, and send.
    pub(crate) fn load_turn(&mut self, at: usize, life: u32) {
        if !self.hosts[at].alive || self.hosts[at].life != life {
            return;
        }
        let event = Event::Load { host: at as u32, life };
        self.heap.push(self.now + self.scenario.load.every, event);
        for place in 0..self.hosts[at].users.wanted.len() {
            let (peer, when) = self.hosts[at].users.wanted[place];
            if self.now >= when && !self.hosts[at].users.knows(peer) {
                self.hosts[at].users.wanted[place].1 = self.now + RETRY;
                self.connect(at, peer);
            }
        }
        let connections: Vec<_> =
            self.hosts[at].users.connections.iter().map(|(i, c)| (*i, c.stage, c.since)).collect();
        for (index, stage, since) in connections {
            if stage == Stage::Up {
                if self.talks(at, index) {
                    self.send_some(at, index);
                }
            } else if self.now - since > SETUP_TIME {
                self.hosts[at].users.connections.remove(&index);
                self.close_channel(at, index, ResetReason::Closed);
            }
        }
    }

    fn connect(&mut self, at: usize, peer: usize) {
        let id = self.hosts[peer].id;
        let Some(route) = self.hosts[at].table.route(id) else { return };
        let life = route.incarnation;
        if let Some(index) = self.add_channel(at, id, Ok(life)) {
            self.add_connection(at, index.0, Stage::Asking);
            self.carry_on(at, index.0);
        }
    }

    fn add_connection(&mut self, at: usize, index: u32, stage: Stage) {
        let channel = &self.hosts[at].channels.all[&index];
        let (peer, session) = (self.ids[&channel.peer], channel.inbox.session);
        let new = Connection { peer, stage, session, since: self.now, full: false, last: None };
        self.hosts[at].users.connections.insert(index, new);
    }

    /// Somebody asks for a channel. Of two that ask each other, the one with the lower number wins.
    pub(crate) fn user_accepts(&mut self, at: usize, index: u32) -> bool {
        let peer = self.ids[&self.hosts[at].channels.all[&index].peer];
        if self.hosts[at].users.is_asking(peer) && at < peer {
            return false;
        }
        self.add_connection(at, index, Stage::Granted);
        true
    }

    /// A channel that was asked for is open.
    pub(crate) fn user_opened(&mut self, at: usize, index: u32) {
        if self.hosts[at].users.connections.contains_key(&index) {
            self.greet(at, index, HELLO);
        }
    }

    fn greet(&mut self, at: usize, index: u32, greeting: u8) {
        if let Some(channel) = self.hosts[at].channels.all.get_mut(&index)
            && let Some(sender) = channel.out.sender_mut()
        {
            sender.push_handshake(&[greeting]);
            sender.end_batch();
        }
        self.carry_on(at, index);
    }

    /// The user takes what waits for it.
    pub(crate) fn user_take(&mut self, at: usize, index: u32) {
        if self.hosts[at].now.stalled {
            return;
        }
        let mut taken = 0;
        while let Some(channel) = self.hosts[at].channels.all.get_mut(&index)
            && let Some(item) = channel.inbox.pop()
        {
            let session = channel.inbox.session;
            match item {
                Item::Message(message, cost) => {
                    taken += cost;
                    self.deliver(at, index, session, message);
                }
                Item::Greeting(greeting, cost) => {
                    taken += cost;
                    self.greeted(at, index, greeting);
                }
                Item::Closed(reason) => self.ended(at, index, reason),
            }
        }
        if taken > 0
            && let Some(channel) = self.hosts[at].channels.all.get_mut(&index)
        {
            channel.inc.grant(taken);
        }
        self.carry_on(at, index);
    }

    /// Users that took nothing for a while go on.
    pub(crate) fn users_take(&mut self, at: usize) {
        let all: Vec<_> = self.hosts[at].channels.all.keys().copied().collect();
        for index in all {
            self.user_take(at, index);
        }
    }

    fn greeted(&mut self, at: usize, index: u32, greeting: u8) {
        let Some(connection) = self.hosts[at].users.connections.get(&index) else { return };
        let peer = connection.peer;
        match (connection.stage, greeting) {
            (Stage::Granted, HELLO) => {
                // The other end sees no connection: what there is here is of the past.
                self.drop_connections(at, peer, index);
                self.up(at, index, peer);
                self.greet(at, index, WELCOME);
            }
            (Stage::Asking, WELCOME) => {
                self.drop_connections(at, peer, index);
                self.up(at, index, peer);
            }
            _ => {}
        }
    }

    fn up(&mut self, at: usize, index: u32, peer: usize) {
        let host = &mut self.hosts[at];
        let Some(connection) = host.users.connections.get_mut(&index) else { return };
        connection.stage = Stage::Up;
        let session = connection.session;
        host.users.up.insert(peer, index);
        let life = host.channels.all[&index].out.peer_incarnation();
        self.counts.sessions += 1;
        self.trace.line(self.now, format_args!("n{at} sees n{peer}, connection {session}"));
        self.checker.up(at, peer, life, session);
    }

    /// Ends all connections to a node but one.
    fn drop_connections(&mut self, at: usize, peer: usize, kept: u32) {
        let users = &self.hosts[at].users;
        let others = users.connections.iter().filter(|(i, c)| c.peer == peer && **i != kept);
        let others: Vec<_> = others.map(|(index, c)| (*index, c.stage)).collect();
        for (index, stage) in others {
            // What the other end has opened later must not be taken for the past.
            if stage != Stage::Granted {
                self.gone(at, index, "replaced", false);
                self.close_channel(at, index, ResetReason::Closed);
            }
        }
    }

    fn ended(&mut self, at: usize, index: u32, reason: ResetReason) {
        self.gone(at, index, &format!("{reason:?}"), false);
    }

    /// The users see a connection no more.
    fn gone(&mut self, at: usize, index: u32, why: &str, wanted: bool) {
        let Some(connection) = self.hosts[at].users.connections.remove(&index) else { return };
        if connection.stage != Stage::Up {
            return;
        }
        let Connection { peer, session, last, .. } = connection;
        self.hosts[at].users.up.remove(&peer);
        let line = format_args!("n{at} sees n{peer} no more, connection {session}: {why}");
        self.trace.line(self.now, line);
        self.checker.down(at, peer, session, wanted);
        if let (Some(Mutant::Late(left)), Some(last)) = (&mut self.mutant, last) {
            *left -= 1;
            if *left == 0 {
                self.mutant = None;
                let late = Message { counter: last.counter + 1, ..last };
                self.checker.delivered(at, session, &late);
            }
        }
    }

    /// The users of a host close their connections.
    pub(crate) fn disconnect_users(&mut self, at: usize) {
        let up: Vec<_> = self.hosts[at].users.up.values().copied().collect();
        for index in up {
            self.gone(at, index, "closed here", true);
            self.close_channel(at, index, ResetReason::Closed);
        }
    }

    // ===== messages =====

    pub(crate) fn user_writable(&mut self, at: usize, index: u32) {
        if let Some(connection) = self.hosts[at].users.connections.get_mut(&index) {
            connection.full = false;
        }
    }

    /// Users talk for 2 s in each 6 s, so that there are last messages: nothing comes after them that
    /// would show that they are missing.
    fn talks(&self, at: usize, index: u32) -> bool {
        let session = self.hosts[at].users.connections.get(&index).map_or(0, |c| c.session);
        self.steady || (self.now / (2 * S) + session).is_multiple_of(3)
    }

    fn send_some(&mut self, at: usize, index: u32) {
        let load = self.scenario.load;
        let n = self.rng.below(load.batch + 1);
        let Some(connection) = self.hosts[at].users.connections.get(&index) else { return };
        if n == 0 || connection.full || !self.loaded {
            return;
        }
        let (peer, session) = (connection.peer, connection.session);
        let Some(channel) = self.hosts[at].channels.all.get(&index) else { return };
        if channel.out.state() != State::Open {
            return;
        }
        let to_life = channel.out.peer_incarnation();
        let mut frames = Vec::new();
        for _ in 0..n {
            let large = self.rng.chance(load.large_ppm);
            let len = self.rng.below(if large { load.large } else { load.size }) as usize;
            let message = Message {
                from: at,
                to: peer,
                from_life: self.hosts[at].incarnation,
                to_life,
                session,
                counter: self.checker.sent(session),
                whole: true,
            };
            frames.push(inbox::write(&message, len.max(MESSAGE_LEN)));
        }
        self.counts.sent += n;
        let Some(channel) = self.hosts[at].channels.all.get_mut(&index) else { return };
        let news = channel.inc.take_piggyback();
        let Some(sender) = channel.out.sender_mut() else { return };
        if let Some(news) = news {
            sender.push_ack(news.next, news.credit);
        }
        for frame in &frames {
            sender.push_frame(&SendOptions::default(), &[frame], frame.len());
        }
        sender.end_batch();
        channel.user_waits = true;
        if let Some(connection) = self.hosts[at].users.connections.get_mut(&index) {
            connection.full = true;
        }
        self.carry_on(at, index);
    }

    fn deliver(&mut self, at: usize, index: u32, session: u64, message: Message) {
        self.counts.delivered += 1;
        self.trace.mix(self.now, session, message.counter);
        if let Some(connection) = self.hosts[at].users.connections.get_mut(&index) {
            connection.last = Some(message);
        }
        let count = self.counts.delivered;
        match self.mutant {
            Some(Mutant::Drop(n)) if n == count => return,
            Some(Mutant::Repeat(n)) if n == count => self.checker.delivered(at, session, &message),
            Some(Mutant::Swap(n)) if n == count => {
                self.hosts[at].users.withheld = Some((session, message));
                return;
            }
            Some(Mutant::Stale(n)) if n == count => {
                let from_life = Incarnation(message.from_life.0 - 1);
                return self.checker.delivered(at, session, &Message { from_life, ..message });
            }
            _ => {}
        }
        self.checker.delivered(at, session, &message);
        if let Some((held, message)) = self.hosts[at].users.withheld.take() {
            if held == session {
                self.checker.delivered(at, session, &message);
            } else {
                self.hosts[at].users.withheld = Some((held, message));
            }
        }
    }
}
