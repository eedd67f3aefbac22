//! The reader of frames against frames of a model: every operation, header and way to cut a frame into pieces, and
//! parts of signals of many processes between each other.

mod flow_model;

use std::collections::VecDeque;

use chatter_core::flow::{FlowKey, FrameReader, MAX_OPEN, Reading};
use flow_model::{Choice, OPERATIONS, Signal, cut, plain, signal};
use proptest::prelude::*;

/// Given signals of a few processes, the parts of one between the frames of others, expect the key of
/// each frame to be its sender's, or the fence where the protocol has no sender or the cache changes.
fn check_stream(seed: u64) -> Result<(), TestCaseError> {
    let mut choice = Choice::new(seed);
    let mut reader = FrameReader::new();
    let senders: Vec<u64> = (0..1 + choice.below(8)).map(|_| choice.any()).collect();
    let mut under_way: Vec<VecDeque<(Vec<u8>, Reading)>> = vec![VecDeque::new(); senders.len()];
    for number in 0..200 {
        let at = choice.below(senders.len() as u64) as usize;
        if under_way[at].is_empty() {
            under_way[at] = signal(&mut choice, senders[at], !senders[at]).frames.into();
        }
        let (frame, expected) = under_way[at].pop_front().expect("a signal has a frame");
        let pieces = cut(&mut choice, &frame);
        let reading = reader.read(&pieces);
        if let FlowKey::Lead(from) = reading.key {
            prop_assert_eq!(from, senders[at]);
        }
        prop_assert_eq!(plain(reading), expected, "frame {}: {:?}", number, pieces);
        prop_assert!(reader.open() <= senders.len());
    }
    for (frame, expected) in under_way.into_iter().flatten() {
        prop_assert_eq!(plain(reader.read(&[&frame])), expected);
    }
    prop_assert_eq!(reader.open(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn streams_are_read_as_the_model_made_them(seed: u64) {
        check_stream(seed)?;
    }

    /// Cut anywhere, a frame gives the same or, where the sender is cut off, a fence.
    #[test]
    fn a_frame_cut_short_is_the_same_or_a_fence(seed: u64) {
        let mut choice = Choice::new(seed);
        let (frame, expected) = signal(&mut choice, 7, 8).frames.remove(0);
        let fence = Reading { key: FlowKey::Fence, droppable: false };
        for len in 0..frame.len() {
            let reading = plain(FrameReader::new().read(&[&frame[..len]]));
            prop_assert!(reading == fence || reading == expected, "{} of {:?}", len, frame);
        }
    }
}

/// Given every operation number with every arity in turn, expect a flow exactly where the protocol has it.
#[test]
fn operations_and_arities_that_do_not_exist_are_fences() {
    for operation in 0..=255_u8 {
        for arity in 0..=255_u8 {
            // Enough identifiers for any position; no known operation minds what they are.
            let mut frame = vec![131, 68, 0, 104, arity, 97, operation];
            for element in 0..8_u8 {
                frame.extend([88, 82, 0, 0, 0, 0, element, 0, 0, 0, 9, 0, 0, 0, 1]);
            }
            let expected = OPERATIONS
                .iter()
                .find(|(known, elements)| {
                    *known == operation && elements.len() + 1 == usize::from(arity)
                })
                .and_then(|(_, elements)| elements.find('F'))
                .map_or(FlowKey::Fence, |at| FlowKey::Flow((at as u64) << 32 | 9));
            let reading = FrameReader::new().read(&[&frame]);
            assert_eq!(reading.key, expected, "operation {operation}, arity {arity}");
        }
    }
}

fn part(kind: u8, sequence: u64, number: u64) -> Vec<u8> {
    let mut frame = vec![131, kind];
    frame.extend(sequence.to_be_bytes());
    frame.extend(number.to_be_bytes());
    if kind == b'E' {
        frame.extend([0, 104, 3, 97, 22, 88, 82, 0]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 1, 88]);
    }
    frame
}

/// Given frames that put atoms into the cache, expect one that the receiver does not have to lead, at whatever
/// place the VM has it, and one that it has to be none.
#[test]
fn atoms_that_are_new_to_the_receiver_lead() {
    let mut reader = FrameReader::new();
    let mut read = |atoms: &[(u8, u8, &str)]| {
        let mut frame = vec![131, 68, atoms.len() as u8];
        let mut halves: Vec<u8> = atoms
            .iter()
            .map(|(segment, _, text)| segment | u8::from(!text.is_empty()) << 3)
            .collect();
        halves.resize(if atoms.is_empty() { 0 } else { 2 * (atoms.len() / 2 + 1) }, 0);
        frame.extend(halves.chunks(2).map(|pair| pair[0] | pair[1] << 4));
        for (_, at, text) in atoms {
            frame.push(*at);
            if !text.is_empty() {
                frame.push(text.len() as u8);
                frame.extend(text.as_bytes());
            }
        }
        frame.extend([104, 3, 97, 22, 88, 82, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 1, 88]);
        let Reading { key, droppable } = reader.read(&[&frame]);
        assert_eq!(droppable, matches!(key, FlowKey::Flow(_)));
        (key, reader.rewritten().map(|(bytes, instead_of)| (bytes[2..].to_vec(), instead_of)))
    };
    let (flow, lead) = (FlowKey::Flow(1 << 32 | 9), FlowKey::Lead(1 << 32 | 9));
    assert_eq!(read(&[]), (flow, None));
    assert_eq!(read(&[(3, 7, "one")]), (lead, None));
    assert_eq!(read(&[(3, 7, "")]), (flow, None));
    assert_eq!(read(&[(4, 7, "two"), (3, 7, ""), (3, 8, "three")]), (lead, None));
    // Another one at a place that has one already is put at the first that is free.
    let (bytes, instead_of) = (vec![2, 0x8f, 0, 255, 1, b'x', 0, 4, b'f', b'o', b'u', b'r'], 14);
    assert_eq!(read(&[(7, 255, "x"), (3, 7, "four")]), (lead, Some((bytes, instead_of))));
    // And the first one is where it was.
    assert_eq!(read(&[(3, 7, "one")]), (flow, Some((vec![1, 0x03, 7], 9))));
    assert_eq!(read(&[(3, 7, "")]), (flow, None));
    assert_eq!(read(&[(3, 7, "four"), (3, 8, "")]), (flow, Some((vec![2, 0x30, 0, 0, 8], 12))));
    assert_eq!(read(&[(3, 7, "")]), (flow, Some((vec![1, 0x00, 0], 5))));
}

/// Given more processes in the middle of large signals than are remembered, expect the parts of the others to be
/// fences, and room again when signals are complete.
#[test]
fn what_is_open_is_bounded() {
    let mut reader = FrameReader::new();
    let flow = |sequence| Reading { key: FlowKey::Flow(sequence), droppable: false };
    let fence = Reading { key: FlowKey::Fence, droppable: false };
    let most = MAX_OPEN as u64;
    for sequence in 0..most + 10 {
        assert_eq!(reader.read(&[&part(b'E', sequence, 3)]), flow(sequence));
    }
    assert_eq!(reader.open(), MAX_OPEN);
    assert_eq!(reader.read(&[&part(b'F', most, 2)]), fence);
    assert_eq!(reader.read(&[&part(b'F', 5, 2)]), flow(5));
    assert_eq!(reader.read(&[&part(b'F', 5, 1)]), flow(5));
    assert_eq!(reader.open(), MAX_OPEN - 1);
    assert_eq!(reader.read(&[&part(b'F', 5, 1)]), fence, "the sequence is over");
    assert_eq!(reader.read(&[&part(b'E', most, 2)]), flow(most));
    assert_eq!(reader.read(&[&part(b'F', most, 1)]), flow(most));
}

/// Given a first part whose control message names nobody, expect the parts that follow to be fences, also when the same
/// process had an unfinished one before.
#[test]
fn parts_of_nobody_are_fences() {
    let mut reader = FrameReader::new();
    let fence = Reading { key: FlowKey::Fence, droppable: false };
    let _ = reader.read(&[&part(b'E', 1, 3)]);
    let mut anonymous = part(b'E', 1, 3);
    anonymous[22] = 2;
    assert_eq!(reader.read(&[&anonymous]), fence);
    assert_eq!(reader.read(&[&part(b'F', 1, 2)]), fence);
    assert_eq!(reader.read(&[&part(b'F', 1, 1)]), fence);
    assert_eq!(reader.open(), 0);
}

/// A tick, and beginnings that nobody knows.
#[test]
fn what_is_no_frame_is_a_fence() {
    let fence = Reading { key: FlowKey::Fence, droppable: false };
    let nothing: [&[u8]; 8] =
        [b"", b"\x83", b"\x83D", b"\x83G\x00", b"p", b"p\x83", b"\x83E\x00", b"\x83F\x00\x00"];
    for frame in nothing {
        assert_eq!(FrameReader::new().read(&[frame]), fence);
        assert_eq!(FrameReader::new().read(&[&[], frame, &[]]), fence);
    }
    assert_eq!(FrameReader::new().read(&[]), fence);
}

/// The model makes what it is meant to make: all operations, and as many flows as fences at least.
#[test]
fn the_model_makes_every_kind() {
    let mut choice = Choice::new(1);
    let (mut flows, mut droppable, mut in_parts) = (0, 0, 0);
    for _ in 0..10_000 {
        let Signal { frames } = signal(&mut choice, 1, 2);
        in_parts += (frames.len() > 1) as u32;
        flows += matches!(frames[0].1.key, FlowKey::Flow(_)) as u32;
        droppable += frames[0].1.droppable as u32;
    }
    assert!(flows > 3_000 && droppable > 300 && in_parts > 1_500, "{flows} {droppable} {in_parts}");
}
