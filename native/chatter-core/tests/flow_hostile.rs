//! Headers that no VM made: frames of the model with bytes changed, cut, or wholly at random, 200,000 of them;
//! `make soak` reads 10,000,000. No panic, no memory by claim, never a droppable fence.

mod flow_model;

use chatter_core::flow::{FlowKey, FrameReader, MAX_OPEN};
use flow_model::{Choice, cut, signal};

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}

/// A frame with a few bytes changed, or of random bytes after a beginning that is known.
fn hostile(choice: &mut Choice) -> Vec<u8> {
    if choice.is(20) {
        let mut frame = choice.one_of(&[&b"\x83D"[..], b"\x83E", b"\x83F", b"p\x83", b""]).to_vec();
        let len = choice.below(80);
        frame.extend((0..len).map(|_| choice.any() as u8));
        return frame;
    }
    let (from, sequence) = (choice.any(), choice.below(50));
    let frames = signal(choice, from, sequence).frames;
    let at = choice.below(frames.len() as u64) as usize;
    let mut frame = frames[at].0.clone();
    for _ in 0..choice.below(4) {
        // Mostly near the beginning, where lengths and tags are.
        let near = choice.one_of(&[4, 30, 1_000]);
        let at = choice.below(near).min(frame.len() as u64 - 1) as usize;
        let any = choice.any() as u8;
        frame[at] = choice.one_of(&[0, 1, 0x7f, 0x80, 0xff, any]);
    }
    if choice.is(20) {
        let len = choice.below(frame.len() as u64 + 1) as usize;
        frame.truncate(len);
    }
    frame
}

/// Given hostile frames, expect an answer to each, the same however it is cut, and nothing remembered but
/// what first parts began.
#[test]
fn hostile_frames_have_a_place() {
    let (count, seed) = (setting("CHATTER_HEADERS", 200_000), setting("CHATTER_SEED", 1));
    println!("seed {seed}, {count} headers");
    let mut choice = Choice::new(seed);
    let (mut reader, mut other) = (FrameReader::new(), FrameReader::new());
    let mut flows = 0_u64;
    for number in 0..count {
        let frame = hostile(&mut choice);
        let reading = reader.read(&[&frame]);
        let pieces = cut(&mut choice, &frame);
        assert_eq!(other.read(&pieces), reading, "seed {seed}, frame {number}: {frame:?}");
        let is_flow = matches!(reading.key, FlowKey::Flow(_));
        assert!(!reading.droppable || is_flow, "frame {number}: {frame:?}");
        assert!(reader.open() <= MAX_OPEN);
        flows += (reading.key != FlowKey::Fence) as u64;
    }
    assert!(flows > count / 10 && flows < count, "{flows} of {count} were flows");
}
