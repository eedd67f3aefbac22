//! The atoms of frames: a model of the VM that sends and of the one that receives, their caches as `erl_ext_dist`
//! describes them, and between them frames whose flows overtake each other as a channel lets them.

mod flow_model;

use std::collections::{HashMap, VecDeque};

use chatter_core::flow::{FlowKey, FrameReader};
use flow_model::{Choice, cut};
use proptest::prelude::*;

const PLACES: usize = 2048;

/// Some have more than 255 bytes.
fn text(atom: usize) -> Vec<u8> {
    let mut text = format!("atom {atom}").into_bytes();
    if atom.is_multiple_of(97) {
        text.resize(300, b'.');
    }
    text
}

/// Frames of a VM.
struct Sending {
    /// Where an atom belongs: atoms that are so far apart have the same place.
    span: usize,
    places: Vec<Option<usize>>,
}

impl Sending {
    /// A message, or the first part of one; and the atoms that it refers to: no two of the same place.
    fn frame(&mut self, choice: &mut Choice, from: u8, atoms: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut refers: Vec<usize> = Vec::new();
        for atom in atoms {
            if refers.iter().all(|other| other % self.span != atom % self.span) {
                refers.push(*atom);
            }
        }
        let is_long = refers.iter().any(|atom| text(*atom).len() > 255);
        let (mut halves, mut rest) = (Vec::new(), Vec::new());
        for &atom in &refers {
            let place = atom % self.span;
            let is_new = self.places[place].replace(atom) != Some(atom);
            halves.push((place >> 8) as u8 | u8::from(is_new) << 3);
            rest.push(place as u8);
            if is_new {
                let text = text(atom);
                let len = (text.len() as u16).to_be_bytes();
                rest.extend_from_slice(if is_long { &len } else { &len[1..] });
                rest.extend(text);
            }
        }
        let mut frame = if choice.is(10) {
            // The only part, or the first of more.
            let number = 1 + choice.below(2);
            [&[131, 69], &9_u64.to_be_bytes()[..], &number.to_be_bytes()].concat()
        } else {
            vec![131, 68]
        };
        frame.push(refers.len() as u8);
        if !refers.is_empty() {
            halves.push(is_long as u8);
            halves.resize(2 * (refers.len() / 2 + 1), 0);
            frame.extend(halves.chunks(2).map(|pair| pair[0] | pair[1] << 4));
        }
        frame.extend(rest);
        frame.extend([104, 3, 97, 22, 88, 82, 0, 0, 0, 0, from, 0, 0, 0, 9, 0, 0, 0, 1, 88]);
        (frame, refers)
    }
}

/// What a VM understands of the header; the place of the control message.
fn receive(places: &mut [Option<Vec<u8>>], frame: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let start = if frame[1] == 69 { 18 } else { 2 };
    let count = usize::from(frame[start]);
    if count == 0 {
        return (vec![], start + 1);
    }
    let half = |at: usize| frame[start + 1 + at / 2] >> (4 * (at % 2)) & 0xf;
    let is_long = half(count) & 1 != 0;
    let mut at = start + 1 + count / 2 + 1;
    let mut atoms = Vec::new();
    for number in 0..count {
        let place = usize::from(half(number) & 7) << 8 | usize::from(frame[at]);
        at += 1;
        if half(number) & 8 != 0 {
            let len = match is_long {
                true => usize::from(frame[at]) << 8 | usize::from(frame[at + 1]),
                false => frame[at].into(),
            };
            at += if is_long { 2 } else { 1 };
            places[place] = Some(frame[at..at + len].to_vec());
            at += len;
        }
        atoms.push(places[place].clone().expect("the place is filled"));
    }
    (atoms, at)
}

type Sent = (Vec<u8>, Vec<usize>, Vec<u8>);

/// What has come in: of every frame the atoms, and what follows them, are those that were sent.
fn arrive(places: &mut [Option<Vec<u8>>], (frame, atoms, sent): Sent) -> Result<(), TestCaseError> {
    let (got, control) = receive(places, &frame);
    prop_assert_eq!(got, atoms.iter().map(|atom| text(*atom)).collect::<Vec<_>>());
    prop_assert_eq!(&sent[sent.len() - 20..], &frame[control..]);
    Ok(())
}

/// Given messages of some processes with some atoms, expect the receiver to understand all of them in every
/// order that their keys allow; how many of the last half were no flow's.
fn check(seed: u64, atoms: usize, span: usize, messages: usize) -> Result<usize, TestCaseError> {
    let mut choice = Choice::new(seed);
    let mut vm = Sending { span, places: vec![None; PLACES] };
    let mut reader = FrameReader::new();
    let mut places = vec![None; PLACES];
    let mut queues: HashMap<u64, VecDeque<Sent>> = HashMap::new();
    let mut apart = 0;
    for number in 0..messages {
        let from = choice.below(4) as u8;
        let most = choice.one_of(&[0, 1, 2, 5, 254]);
        let refers: Vec<usize> =
            (0..choice.below(most + 1)).map(|_| choice.below(atoms as u64) as usize).collect();
        let (sent, refers) = vm.frame(&mut choice, from, &refers);
        let key = reader.read(&cut(&mut choice, &sent)).key;
        let frame = match reader.rewritten() {
            Some((header, instead_of)) => [header, &sent[instead_of..]].concat(),
            None => sent.clone(),
        };
        apart += usize::from(number > messages / 2 && !matches!(key, FlowKey::Flow(_)));
        let whole = (frame, refers, sent);
        match key {
            FlowKey::Flow(key) => queues.entry(key).or_default().push_back(whole),
            FlowKey::Lead(key) => {
                for before in queues.remove(&key).into_iter().flatten() {
                    arrive(&mut places, before)?;
                }
                arrive(&mut places, whole)?;
            }
            FlowKey::Fence => {
                for before in queues.drain().flat_map(|(_, queue)| queue) {
                    arrive(&mut places, before)?;
                }
                arrive(&mut places, whole)?;
            }
        }
        if choice.is(30)
            && let Some(queue) = queues.get_mut(&(u64::from(choice.below(4) as u8) << 32 | 9))
            && let Some(next) = queue.pop_front()
        {
            arrive(&mut places, next)?;
        }
    }
    Ok(apart)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_atom_arrives(seed: u64, atoms in 1_usize..6_000, span in 1_usize..=PLACES) {
        check(seed, atoms, span, 400)?;
    }
}

/// Given no more atoms than the receiver has places, twenty of which share a place at the VM, expect frames to wait for
/// nobody once each atom has been there.
#[test]
fn atoms_that_share_a_place_part_for_good() {
    assert_eq!(check(1, 2_000, 100, 8_000).unwrap(), 0);
}

/// Given more, expect frames to be fences for ever, and all to arrive.
#[test]
fn more_atoms_than_places_arrive() {
    assert!(check(2, 3_000, PLACES, 8_000).unwrap() > 1_000);
}
