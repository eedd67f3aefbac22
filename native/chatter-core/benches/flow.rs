//! How long the reader takes for a frame: `make bench-flow`; the bar is 25 ns.
#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::hint::black_box;

use chatter_core::flow::FrameReader;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn pid(id: u32) -> Vec<u8> {
    let mut bytes = vec![88, 82, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
    bytes
}

fn part(kind: u8, number: u64) -> Vec<u8> {
    [&[131, kind][..], &7_u64.to_be_bytes(), &number.to_be_bytes()].concat()
}

fn frame(c: &mut Criterion, name: &str, header: &[u8], control: &[u8]) {
    let mut reader = FrameReader::new();
    // A signal that is never complete, for the frames that are parts.
    let first = part(b'E', 3);
    reader.read(&[&first, &[0], &[104, 3, 97, 22], &pid(1), &pid(2)]);
    let payload = [0_u8; 100];
    let mut group = c.benchmark_group("flow");
    group.throughput(Throughput::Elements(1));
    group.bench_function(name, |b| {
        b.iter(|| reader.read(black_box(&[header, control, payload.as_slice()])));
    });
    group.finish();
}

fn frames(c: &mut Criterion) {
    let cached = [131, 68, 2, 0x00, 0x00, 17, 34];
    let to_process = [&[104, 3, 97, 22][..], &pid(1), &pid(2)].concat();
    let to_name = [&[104, 4, 97, 6][..], &pid(1), &[82, 1, 82, 1]].concat();
    frame(c, "message to a process", &cached, &to_process);
    frame(c, "message to a name", &cached, &to_name);
    let reference = [90, 0, 3, 82, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let reply = [&[104, 5, 97, 31][..], &reference, &pid(1), &[97, 0], &pid(2)].concat();
    frame(c, "reply to spawn_request", &cached, &reply);
    let many = [&[131, 68, 40][..], &[0; 21], &[7; 40]].concat();
    frame(c, "message with 40 atoms", &many, &to_process);
    let new = [131, 68, 2, 0x80, 0x00, 17, 34, 3, b'a', b'b', b'c'];
    frame(c, "change of the cache", &new, &to_process);
    frame(c, "further part", &part(b'F', 2), &[0; 64]);
}

criterion_group!(benches, frames);
criterion_main!(benches);
