//! Frames of the VM, made from the description of the protocol (`erl_dist_protocol`, `erl_ext_dist`) without any code of
//! the reader, and what has to be found out about each.
#![allow(dead_code, reason = "each test uses a part")]

use chatter_core::flow::{FlowKey, Reading};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

/// A source of choices. Equal seeds make equal frames.
pub struct Choice(Xoshiro256PlusPlus);

impl Choice {
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }

    pub fn any(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub fn is(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.any() as u8).collect()
    }
}

/// The elements after the operation: `F` the sender; `P` another identifier; `R` a reference; `I` a number;
/// `N` an atom; `A` any term.
pub const OPERATIONS: [(u8, &str); 39] = [
    (1, "FP"),
    (2, "NP"),
    (3, "FPA"),
    (4, "FP"),
    (6, "FNN"),
    (7, "PP"),
    (8, "FPA"),
    (12, "NPA"),
    (13, "FPAA"),
    (16, "FNNA"),
    (18, "FPAA"),
    (19, "FPR"),
    (19, "FNR"),
    (20, "FPR"),
    (20, "FNR"),
    (21, "FPRA"),
    (21, "NPRA"),
    (22, "FP"),
    (23, "FPA"),
    (24, "FP"),
    (25, "FPA"),
    (26, "FP"),
    (27, "FPA"),
    (28, "FPR"),
    (28, "NPR"),
    (29, "RFPAA"),
    (30, "RFPAAA"),
    (31, "RPIF"),
    (31, "RPIN"),
    (32, "RPIFA"),
    (32, "RPINA"),
    (33, "FR"),
    (34, "FRA"),
    (35, "IFP"),
    (36, "IFP"),
    (37, "IFP"),
    (37, "IFN"),
    (37, "IFR"),
    (37, "IFPA"),
];

/// Plain messages: those to an identifier, a name and an alias, with and without a token.
const MESSAGES: [u8; 6] = [6, 16, 22, 23, 33, 34];

fn atom(choice: &mut Choice, out: &mut Vec<u8>) {
    let tag = choice.one_of(&[82, 82, 82, 119, 118, 115, 100]);
    let len = choice.one_of(&[0, 1, 5, 20, 255]);
    match tag {
        82 => out.extend([82, choice.any() as u8]),
        119 | 115 => out.extend([tag, len]),
        _ => out.extend([tag, 0, len]),
    }
    if tag != 82 {
        out.extend(choice.bytes(len.into()));
    }
}

fn pid(choice: &mut Choice, id_and_serial: u64, out: &mut Vec<u8>) {
    let is_old = choice.is(10);
    out.push(if is_old { 103 } else { 88 });
    atom(choice, out);
    out.extend(id_and_serial.to_be_bytes());
    out.extend(choice.bytes(if is_old { 1 } else { 4 }));
}

fn term(choice: &mut Choice, kind: char, from: u64, out: &mut Vec<u8>) {
    match kind {
        'F' => pid(choice, from, out),
        'P' => {
            let other = choice.any();
            pid(choice, other, out);
        }
        'R' => {
            let words = choice.below(6) as u8;
            let tag = choice.one_of(&[90, 90, 90, 114]);
            out.extend([tag, 0, words]);
            atom(choice, out);
            let len = usize::from(words) * 4 + if tag == 90 { 4 } else { 1 };
            out.extend(choice.bytes(len));
        }
        'I' => match choice.below(3) {
            0 => out.extend([97, choice.any() as u8]),
            1 => {
                out.push(98);
                out.extend(choice.bytes(4));
            }
            _ => {
                let len = choice.below(9) as u8;
                out.extend([110, len, choice.any() as u8 & 1]);
                out.extend(choice.bytes(len.into()));
            }
        },
        'N' => atom(choice, out),
        _ => match choice.below(4) {
            0 => out.push(106),
            1 => {
                out.extend([104, 2]);
                term(choice, 'I', 0, out);
                term(choice, 'A', 0, out);
            }
            2 => {
                let len = choice.below(60) as u8;
                out.extend([107, 0, len]);
                out.extend(choice.bytes(len.into()));
            }
            _ => term(choice, 'P', 0, out),
        },
    }
}

/// The atoms that a header refers to; whether one of them is new.
fn atoms(choice: &mut Choice, out: &mut Vec<u8>) -> bool {
    let count = choice.one_of(&[0, 1, 2, 3, 4, 7, 8, 60, 254, 255]) as u8;
    out.push(count);
    if count == 0 {
        return false;
    }
    let news = match choice.below(3) {
        0 => vec![],
        1 => vec![choice.below(count.into()) as u8],
        _ => (0..count).filter(|_| choice.is(30)).collect(),
    };
    let is_long = choice.is(30);
    // Four bits each, the first in the low half of the first byte; one group more for the header.
    let mut halves: Vec<u8> = (0..count)
        .map(|at| choice.below(8) as u8 | if news.contains(&at) { 8 } else { 0 })
        .collect();
    // The bits beside LongAtoms mean nothing.
    halves.push(is_long as u8 | (choice.below(8) as u8) << 1);
    if halves.len() % 2 == 1 {
        halves.push(choice.below(16) as u8);
    }
    out.extend(halves.chunks(2).map(|pair| pair[0] | pair[1] << 4));
    for at in 0..count {
        out.push(choice.any() as u8);
        if news.contains(&at) {
            // Long enough that no two are the same.
            let len = choice.one_of(&[8, 18, 255]) as u8;
            if is_long {
                out.push(0);
            }
            out.push(len);
            out.extend(choice.bytes(len.into()));
        }
    }
    !news.is_empty()
}

/// A signal as the VM sends it: its frames, and what each of them is.
pub struct Signal {
    pub frames: Vec<(Vec<u8>, Reading)>,
}

const FENCE: Reading = Reading { key: FlowKey::Fence, droppable: false };

fn control(choice: &mut Choice, from: u64, out: &mut Vec<u8>) -> (u8, Option<u64>) {
    let (operation, elements) = choice.one_of(&OPERATIONS);
    out.extend([104, elements.len() as u8 + 1, 97, operation]);
    for kind in elements.chars() {
        term(choice, kind, from, out);
    }
    (operation, elements.contains('F').then_some(from))
}

fn whole(choice: &mut Choice, from: u64) -> Signal {
    let mut frame = Vec::new();
    let updates = if choice.is(10) {
        frame.extend([112, 131]);
        false
    } else {
        frame.extend([131, 68]);
        atoms(choice, &mut frame)
    };
    let (operation, sender) = control(choice, from, &mut frame);
    let len = choice.below(50) as usize;
    frame.extend(choice.bytes(len));
    let reading = match sender {
        Some(sender) if !updates => {
            Reading { key: FlowKey::Flow(sender), droppable: MESSAGES.contains(&operation) }
        }
        _ => FENCE,
    };
    Signal { frames: vec![(frame, reading)] }
}

fn in_parts(choice: &mut Choice, from: u64, sequence: u64) -> Signal {
    let parts = 1 + choice.below(5);
    let mut first = vec![131, 69];
    first.extend(sequence.to_be_bytes());
    first.extend(parts.to_be_bytes());
    let updates = atoms(choice, &mut first);
    let (_, sender) = control(choice, from, &mut first);
    first.extend(choice.bytes(40));
    let key = sender.map_or(FlowKey::Fence, FlowKey::Flow);
    let first_key = if updates { FlowKey::Fence } else { key };
    let mut frames = vec![(first, Reading { key: first_key, droppable: false })];
    for part in (1..parts).rev() {
        let mut frame = vec![131, 70];
        frame.extend(sequence.to_be_bytes());
        frame.extend(part.to_be_bytes());
        frame.extend(choice.bytes(40));
        frames.push((frame, Reading { key, droppable: false }));
    }
    Signal { frames }
}

/// Any signal of a process.
pub fn signal(choice: &mut Choice, from: u64, sequence: u64) -> Signal {
    if choice.is(30) { in_parts(choice, from, sequence) } else { whole(choice, from) }
}

/// Cuts a frame into pieces, some of which may be empty.
pub fn cut<'a>(choice: &mut Choice, mut frame: &'a [u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let most = choice.one_of(&[1, 3, 40, 400]);
    while !frame.is_empty() {
        let len = choice.below(most + 1).min(frame.len() as u64) as usize;
        let (piece, rest) = frame.split_at(len);
        pieces.push(piece);
        frame = rest;
    }
    pieces
}

/// What a model says that knows nothing of what the cache held before.
pub fn plain(reading: Reading) -> Reading {
    match reading.key {
        FlowKey::Lead(_) => Reading { key: FlowKey::Fence, droppable: reading.droppable },
        _ => reading,
    }
}
