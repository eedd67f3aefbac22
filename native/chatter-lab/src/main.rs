//! `chatter-lab PORTS SEED`: makes the TAP devices `port1` to `portN` in its own network namespace,
//! says `ready`, and switches frames between them. It takes commands on its standard input (see
//! [`chatter_lab::command`]) and ends when that ends.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chatter_lab::command;
use chatter_lab::fabric::Fabric;
use chatter_lab::tap::{self, Tap};

/// Frames taken from one port before the others have their turn.
const BURST: usize = 32;
const LARGEST_FRAME: usize = 65_600;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<Option<u64>> = arguments.iter().map(|word| word.parse().ok()).collect();
    let [Some(ports @ 1..=255), Some(seed)] = numbers[..] else {
        eprintln!("usage: chatter-lab PORTS SEED (1 to 255 ports)");
        return ExitCode::from(2);
    };
    match serve(usize::try_from(ports).unwrap_or(0), seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chatter-lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(ports: usize, seed: u64) -> io::Result<()> {
    let opened: io::Result<Vec<Tap>> =
        (1..=ports).map(|port| Tap::open(&format!("port{port}"))).collect();
    let mut taps = opened?;
    let mut fabric = Fabric::new(ports, seed);
    let mut input = Input::default();
    let mut descriptors: Vec<RawFd> = taps.iter().map(AsRawFd::as_raw_fd).collect();
    descriptors.push(io::stdin().as_raw_fd());
    let began = Instant::now();
    let now_us = || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut buffer = vec![0; LARGEST_FRAME];
    say("ready")?;
    loop {
        let longest =
            fabric.next_due_us().map(|due| Duration::from_micros(due.saturating_sub(now_us())));
        let readable = tap::wait(&descriptors, longest)?;
        if readable.get(ports) == Some(&true) && !input.obey(&mut fabric)? {
            return Ok(());
        }
        fabric.release(now_us(), &mut |to, frame| taps[to].write(frame));
        for (port, _) in readable[..ports].iter().enumerate().filter(|(_, can)| **can) {
            for _ in 0..BURST {
                let Some(frame) = taps[port].read(&mut buffer)? else { break };
                let now = now_us();
                fabric.offer(now, port, frame, &mut |to, frame| taps[to].write(frame));
            }
        }
    }
}

/// What has come of a command that is not a whole line yet.
#[derive(Default)]
struct Input(Vec<u8>);

impl Input {
    /// Carries out the commands that are there; `false` at the end of the input.
    fn obey(&mut self, fabric: &mut Fabric) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        // Not through the buffer of `Stdin`: poll would not see what is in it.
        let count = io::stdin().lock().read(&mut bytes)?;
        self.0.extend(&bytes[..count]);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            say(&command::run(fabric, &String::from_utf8_lossy(&line)))?;
        }
        Ok(count > 0)
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
