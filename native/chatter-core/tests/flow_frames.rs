//! Frames that a real VM has encoded, of every operation it has: `flow_frames.txt`, or the file that
//! `CHATTER_FRAMES` names. `test/chatter_frames_SUITE.erl` makes such files, and knows of each frame who sent it.

mod flow_model;

use chatter_core::flow::{FlowKey, FrameReader, Reading};
use flow_model::{Choice, cut, plain};

/// One line: what the frame is, whose it is, whether it may be lost, and its first bytes.
struct Line<'a> {
    title: &'a str,
    reading: Reading,
    frame: Vec<u8>,
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn line(text: &str) -> Line<'_> {
    let [title, key, droppable, hex] = text.split('\t').collect::<Vec<_>>()[..] else {
        panic!("not four fields: {text}");
    };
    let key = match key {
        "fence" => FlowKey::Fence,
        key => FlowKey::Flow(u64::from_str_radix(key, 16).expect("hexadecimal")),
    };
    let droppable = droppable.parse().expect("true or false");
    Line { title, reading: Reading { key, droppable }, frame: bytes(hex) }
}

/// Given frames of a real VM in the order it sent them, expect of each what the VM's test knows, also when it comes in
/// pieces.
#[test]
fn frames_of_a_real_vm() {
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/flow_frames.txt");
    let path = std::env::var("CHATTER_FRAMES").unwrap_or_else(|_| kept.into());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut choice = Choice::new(1);
    let (mut connections, mut frames, mut leads) = (0, 0, 0);
    let (mut reader, mut others) = (FrameReader::new(), Vec::new());
    for text in text.lines() {
        if text.starts_with("connection\t") {
            connections += 1;
            reader = FrameReader::new();
            others = (0..8).map(|_| FrameReader::new()).collect();
            continue;
        }
        let Line { title, reading, frame } = line(text);
        let read = reader.read(&[&frame]);
        assert_eq!(plain(read), reading, "{title}: {frame:?}");
        for other in &mut others {
            let pieces = cut(&mut choice, &frame);
            assert_eq!(other.read(&pieces), read, "{title}: {pieces:?}");
        }
        leads += usize::from(read != reading);
        frames += 1;
    }
    assert_eq!(reader.open(), 0);
    assert!(connections >= 5 && frames >= 200, "{connections} connections, {frames} frames");
    assert!(leads >= 3, "{leads}");
}
