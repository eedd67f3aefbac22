//! The text form of scenarios: one thing a line, `#` begins a comment.
//!
//! ```text
//! seed 7
//! nodes 4
//! promise route
//! edge 0-1 delay 200us metric 10 dial both
//! pair 0-3
//! load every 50ms batch 3 size 200 large 2000ppm 60000
//! limit window 65536
//! at 1500ms cut 0-1 for 2s
//! at 2s oneway 0>1 for 1s
//! at 3s kill 2 for 500ms
//! settle 8s
//! ```

use std::fmt;
use std::str::FromStr;

use crate::scenario::{Dialler, EdgeSpec, Fault, Promise, Scenario, TimedFault};
use crate::time::{MS, Nanos, S, US};

/// A line that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextError {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for TextError {}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let promise = if self.promise == Promise::Route { "route" } else { "anything" };
        writeln!(f, "seed {}\nnodes {}\npromise {promise}", self.seed, self.nodes)?;
        let (load, limits) = (&self.load, &self.limits);
        writeln!(
            f,
            "load every {} batch {} size {} large {}ppm {}",
            Time(load.every),
            load.batch,
            load.size,
            load.large_ppm,
            load.large
        )?;
        writeln!(f, "limit window {}", limits.window)?;
        writeln!(f, "limit relay_queue {}", limits.relay_queue)?;
        writeln!(f, "limit channel_queue {}", limits.channel_queue)?;
        writeln!(f, "limit retransmit_memory {}", limits.retransmit_memory)?;
        writeln!(f, "limit socket {}", limits.socket)?;
        writeln!(f, "limit max_dial_backoff_ms {}", limits.max_dial_backoff_ms)?;
        for edge in &self.edges {
            let [a, b] = edge.ends;
            write!(f, "edge {a}-{b} delay {}", Time(edge.delay))?;
            if edge.rate > 0 {
                write!(f, " rate {}", edge.rate)?;
            }
            if let Some(metric) = edge.metric {
                write!(f, " metric {metric}")?;
            }
            writeln!(f, " dial {}", edge.dialler.word())?;
        }
        for [a, b] in &self.pairs {
            writeln!(f, "pair {a}-{b}")?;
        }
        for fault in &self.faults {
            writeln!(f, "at {} {}", Time(fault.at), self.describe(fault))?;
        }
        writeln!(f, "settle {}", Time(self.settle))
    }
}

impl Dialler {
    fn word(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Both => "both",
        }
    }
}

struct Time(Nanos);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.0;
        match at {
            Nanos::MAX => write!(f, "ever"),
            _ if at.is_multiple_of(S) => write!(f, "{}s", at / S),
            _ if at.is_multiple_of(MS) => write!(f, "{}ms", at / MS),
            _ => write!(f, "{}us", at / US),
        }
    }
}

impl Scenario {
    /// A fault in words, as in the text form.
    pub fn describe(&self, fault: &TimedFault) -> String {
        let edge = |at: usize| {
            let [a, b] = self.edges[at].ends;
            format!("{a}-{b}")
        };
        let toward = |at: usize, end: usize| {
            let ends = self.edges[at].ends;
            format!("{}>{}", ends[1 - end], ends[end])
        };
        let what = match fault.fault {
            Fault::Cut(at) => format!("cut {}", edge(at)),
            Fault::OneWay(at, end) => format!("oneway {}", toward(at, end)),
            Fault::Reset(at) => format!("reset {}", edge(at)),
            Fault::Corrupt(at, end) => format!("corrupt {}", toward(at, end)),
            Fault::Delay(at, by) => format!("delay {} {}", edge(at), Time(by)),
            Fault::Jitter(at, by) => format!("jitter {} {}", edge(at), Time(by)),
            Fault::Loss(at, ppm) => format!("loss {} {ppm}ppm", edge(at)),
            Fault::Rate(at, rate) => format!("rate {} {rate}", edge(at)),
            Fault::Leak(at, ppm) => format!("leak {} {ppm}ppm", edge(at)),
            Fault::Scramble(at, ppm) => format!("scramble {} {ppm}ppm", edge(at)),
            Fault::Blink(node) => format!("blink {node}"),
            Fault::Kill(node) => format!("kill {node}"),
            Fault::PowerOff(node) => format!("poweroff {node}"),
            Fault::Stop(node) => format!("stop {node}"),
            Fault::Pause(node) => format!("pause {node}"),
            Fault::Stall(node) => format!("stall {node}"),
            Fault::Drain(node) => format!("drain {node}"),
            Fault::Drop(node, ppm) => format!("drop {node} {ppm}ppm"),
            Fault::Double(node, ppm) => format!("double {node} {ppm}ppm"),
            Fault::Reorder(node, ppm) => format!("reorder {node} {ppm}ppm"),
            Fault::Disconnect(node) => format!("disconnect {node}"),
        };
        match fault.fault {
            Fault::Reset(_) | Fault::Blink(_) | Fault::Corrupt(..) | Fault::Disconnect(_) => what,
            _ => format!("{what} for {}", Time(fault.lasts)),
        }
    }
}

impl FromStr for Scenario {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let mut scenario = Scenario::new(0, 0);
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = Words(line.split_whitespace().collect(), 0);
            if !words.0.is_empty() {
                let read = scenario.line(&mut words).and_then(|()| words.end());
                read.map_err(|reason| TextError { line: at + 1, reason })?;
            }
        }
        scenario.faults.sort_by_key(|fault| fault.at);
        Ok(scenario)
    }
}

/// The words of a line.
struct Words<'a>(Vec<&'a str>, usize);

impl<'a> Words<'a> {
    fn more(&self) -> bool {
        self.1 < self.0.len()
    }

    fn word(&mut self) -> Result<&'a str, String> {
        let word = self.0.get(self.1).copied().ok_or("a word is missing")?;
        self.1 += 1;
        Ok(word)
    }

    fn end(&self) -> Result<(), String> {
        self.0.get(self.1).map_or(Ok(()), |word| Err(format!("'{word}' is too much")))
    }

    fn keyword(&mut self, wanted: &str) -> Result<(), String> {
        let word = self.word()?;
        if word == wanted { Ok(()) } else { Err(format!("'{wanted}' expected, not '{word}'")) }
    }

    fn number<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.word()?;
        word.parse().map_err(|_| format!("'{word}' is no number"))
    }

    fn ppm(&mut self) -> Result<u32, String> {
        let word = self.word()?;
        let number = word.strip_suffix("ppm").and_then(|number| number.parse().ok());
        number.ok_or_else(|| format!("'{word}' is not like 1000ppm"))
    }

    fn time(&mut self) -> Result<Nanos, String> {
        let word = self.word()?;
        let unit = |suffix: &str, unit: Nanos| {
            let number: Nanos = word.strip_suffix(suffix)?.parse().ok()?;
            number.checked_mul(unit)
        };
        let time = unit("us", US).or_else(|| unit("ms", MS)).or_else(|| unit("s", S));
        let ever = (word == "ever").then_some(Nanos::MAX);
        time.or(ever).ok_or_else(|| format!("'{word}' is not like 20ms"))
    }

    fn two(&mut self, between: char) -> Result<[usize; 2], String> {
        let word = self.word()?;
        let two = word.split_once(between);
        let two = two.and_then(|(a, b)| Some([a.parse().ok()?, b.parse().ok()?]));
        two.ok_or_else(|| format!("'{word}' is not like 1{between}2"))
    }
}

impl Scenario {
    fn line(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        match words.word()? {
            "seed" => self.seed = words.number()?,
            "nodes" => self.nodes = words.number()?,
            "settle" => self.settle = words.time()?,
            "promise" => {
                self.promise = match words.word()? {
                    "route" => Promise::Route,
                    "anything" => Promise::Anything,
                    other => return Err(format!("no promise '{other}'")),
                }
            }
            "load" => self.read_load(words)?,
            "limit" => self.read_limit(words)?,
            "edge" => self.read_edge(words)?,
            "pair" => {
                let [a, b] = words.two('-')?;
                self.pairs.push([self.node(a)?, self.node(b)?]);
            }
            "at" => {
                let at = words.time()?;
                let fault = self.read_fault(words)?;
                let momentary = matches!(
                    fault,
                    Fault::Reset(_) | Fault::Blink(_) | Fault::Corrupt(..) | Fault::Disconnect(_)
                );
                let lasts = if momentary {
                    0
                } else {
                    words.keyword("for")?;
                    words.time()?
                };
                self.faults.push(TimedFault { at, lasts, fault });
            }
            other => return Err(format!("'{other}' means nothing")),
        }
        Ok(())
    }

    fn read_load(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        while words.more() {
            match words.word()? {
                "every" => self.load.every = words.time()?.max(US),
                "batch" => self.load.batch = words.number()?,
                "size" => self.load.size = words.number()?,
                "large" => {
                    self.load.large_ppm = words.ppm()?;
                    self.load.large = words.number()?;
                }
                other => return Err(format!("no load '{other}'")),
            }
        }
        Ok(())
    }

    fn read_limit(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        match words.word()? {
            "window" => self.limits.window = words.number()?,
            "relay_queue" => self.limits.relay_queue = words.number()?,
            "channel_queue" => self.limits.channel_queue = words.number()?,
            "retransmit_memory" => self.limits.retransmit_memory = words.number()?,
            "socket" => self.limits.socket = words.number()?,
            "max_dial_backoff_ms" => self.limits.max_dial_backoff_ms = words.number()?,
            other => return Err(format!("no limit '{other}'")),
        }
        Ok(())
    }

    fn read_edge(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let [a, b] = words.two('-')?;
        let mut edge = EdgeSpec { ends: [self.node(a)?, self.node(b)?], ..EdgeSpec::default() };
        if a == b || self.edge_between(a, b).is_some() {
            return Err(format!("a second edge {a}-{b}, or a loop"));
        }
        while words.more() {
            match words.word()? {
                "delay" => edge.delay = words.time()?,
                "rate" => edge.rate = words.number()?,
                "metric" => edge.metric = Some(words.number()?),
                "dial" => {
                    edge.dialler = match words.word()? {
                        "first" => Dialler::First,
                        "second" => Dialler::Second,
                        "both" => Dialler::Both,
                        other => return Err(format!("no dialler '{other}'")),
                    }
                }
                other => return Err(format!("no edge has '{other}'")),
            }
        }
        self.edges.push(edge);
        Ok(())
    }

    fn read_fault(&mut self, words: &mut Words<'_>) -> Result<Fault, String> {
        let kind = words.word()?;
        Ok(match kind {
            "cut" => Fault::Cut(self.read_edge_name(words)?),
            "reset" => Fault::Reset(self.read_edge_name(words)?),
            "delay" => Fault::Delay(self.read_edge_name(words)?, words.time()?),
            "jitter" => Fault::Jitter(self.read_edge_name(words)?, words.time()?),
            "loss" => Fault::Loss(self.read_edge_name(words)?, words.ppm()?),
            "rate" => Fault::Rate(self.read_edge_name(words)?, words.number()?),
            "leak" => Fault::Leak(self.read_edge_name(words)?, words.ppm()?),
            "scramble" => Fault::Scramble(self.read_edge_name(words)?, words.ppm()?),
            "oneway" => {
                let (edge, end) = self.read_direction(words)?;
                Fault::OneWay(edge, end)
            }
            "corrupt" => {
                let (edge, end) = self.read_direction(words)?;
                Fault::Corrupt(edge, end)
            }
            "blink" => Fault::Blink(self.read_node(words)?),
            "kill" => Fault::Kill(self.read_node(words)?),
            "poweroff" => Fault::PowerOff(self.read_node(words)?),
            "stop" => Fault::Stop(self.read_node(words)?),
            "pause" => Fault::Pause(self.read_node(words)?),
            "stall" => Fault::Stall(self.read_node(words)?),
            "drain" => Fault::Drain(self.read_node(words)?),
            "disconnect" => Fault::Disconnect(self.read_node(words)?),
            "drop" => Fault::Drop(self.read_node(words)?, words.ppm()?),
            "double" => Fault::Double(self.read_node(words)?, words.ppm()?),
            "reorder" => Fault::Reorder(self.read_node(words)?, words.ppm()?),
            other => return Err(format!("no fault '{other}'")),
        })
    }

    fn read_node(&self, words: &mut Words<'_>) -> Result<usize, String> {
        self.node(words.number()?)
    }

    fn node(&self, node: usize) -> Result<usize, String> {
        if node < self.nodes { Ok(node) } else { Err(format!("no node {node}")) }
    }

    fn read_edge_name(&self, words: &mut Words<'_>) -> Result<usize, String> {
        let [a, b] = words.two('-')?;
        self.edge_between(a, b).ok_or_else(|| format!("no edge {a}-{b}"))
    }

    fn read_direction(&self, words: &mut Words<'_>) -> Result<(usize, usize), String> {
        let [from, to] = words.two('>')?;
        let edge = self.edge_between(from, to).ok_or_else(|| format!("no edge {from}-{to}"))?;
        Ok((edge, usize::from(self.edges[edge].ends[1] == to)))
    }
}
