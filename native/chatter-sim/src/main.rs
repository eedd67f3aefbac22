//! The simulator as a program: runs seeds, one seed, a scenario from a file; measures.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use chatter_sim::cold;
use chatter_sim::run::{Outcome, quantile, run};
use chatter_sim::scenario::Scenario;
use chatter_sim::shrink::shrink;
use chatter_sim::speed;
use chatter_sim::time::S;

const USAGE: &str = "\
chatter-sim seeds COUNT [--from SEED] [--faults N] [--threads N]   run many seeds
chatter-sim seed SEED [--faults N] [--loud]                        run one
chatter-sim show SEED [--faults N]                                 print its scenario
chatter-sim shrink SEED [--faults N]                               find fewer faults that fail alike
chatter-sim file PATH [--loud]                                     run a scenario from a file
chatter-sim speed                                                  50 nodes against real time
chatter-sim cold [NODES]                                           all nodes start at once";

/// Faults of a random scenario.
const FAULTS: usize = 200;

struct Options {
    words: Vec<String>,
    from: u64,
    faults: usize,
    threads: u64,
    loud: bool,
}

fn options() -> Option<Options> {
    let mut options =
        Options { words: Vec::new(), from: 1, faults: FAULTS, threads: 2, loud: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--from" => options.from = args.next()?.parse().ok()?,
            "--faults" => options.faults = args.next()?.parse().ok()?,
            "--threads" => options.threads = args.next()?.parse().ok().filter(|n| *n > 0)?,
            "--loud" => options.loud = true,
            _ => options.words.push(arg),
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let ok = options().and_then(|options| {
        let words: Vec<_> = options.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["seeds", count] => Some(seeds(count.parse().ok()?, &options)),
            ["seed", seed] => {
                let seed: u64 = seed.parse().ok()?;
                println!("seed {seed}");
                let outcome = run(Scenario::random(seed, options.faults), None, options.loud);
                Some(show(&outcome, &options))
            }
            ["show", seed] => {
                print!("{}", Scenario::random(seed.parse().ok()?, options.faults));
                Some(true)
            }
            ["shrink", seed] => {
                print!("{}", shrink(Scenario::random(seed.parse().ok()?, options.faults))?);
                Some(true)
            }
            ["file", path] => Some(file(path, &options)),
            ["speed"] => Some(measure_speed()),
            ["cold"] => Some(measure_cold(1_000)),
            ["cold", nodes] => Some(measure_cold(nodes.parse().ok()?)),
            _ => None,
        }
    });
    match ok {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            eprintln!("{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn show(outcome: &Outcome, options: &Options) -> bool {
    println!("{outcome}");
    let ok = outcome.violations.is_empty();
    if !ok {
        let (seed, faults) = (outcome.seed, options.faults);
        println!("again: cargo run -p chatter-sim -- seed {seed} --faults {faults}");
    }
    ok
}

fn file(path: &str, options: &Options) -> bool {
    let scenario = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let scenario = scenario.and_then(|text| text.parse().map_err(|e| format!("{e}")));
    match scenario {
        Ok(scenario) => {
            let outcome = run(scenario, None, options.loud);
            println!("{outcome}");
            outcome.violations.is_empty()
        }
        Err(error) => {
            eprintln!("{path}: {error}");
            false
        }
    }
}

/// Runs seeds on some threads; each run is in one.
#[expect(clippy::disallowed_methods, reason = "how long it took in real time")]
fn seeds(count: u64, options: &Options) -> bool {
    let (first, end) = (options.from, options.from + count);
    println!("seeds {first} to {}, {} faults each", end - 1, options.faults);
    let (next, ok) = (AtomicU64::new(first), AtomicBool::new(true));
    let [faults, messages, events, time] = [const { AtomicU64::new(0) }; 4];
    let times = std::sync::Mutex::new(Vec::new());
    let began = Instant::now();
    std::thread::scope(|threads| {
        for _ in 0..options.threads {
            threads.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = run(Scenario::random(seed, options.faults), None, false);
                    faults.fetch_add(outcome.counts.faults, Ordering::Relaxed);
                    messages.fetch_add(outcome.counts.delivered, Ordering::Relaxed);
                    events.fetch_add(outcome.counts.events, Ordering::Relaxed);
                    time.fetch_add(outcome.time / S, Ordering::Relaxed);
                    if let Ok(mut times) = times.lock() {
                        times.resize(outcome.times.len(), 0);
                        times.iter_mut().zip(&outcome.times).for_each(|(sum, n)| *sum += n);
                    }
                    if !outcome.violations.is_empty() {
                        ok.store(false, Ordering::Relaxed);
                        show(&outcome, options);
                    }
                }
            });
        }
    });
    let took = began.elapsed().as_secs_f64();
    let [faults, messages, events, time] =
        [faults, messages, events, time].map(AtomicU64::into_inner);
    println!(
        "{count} seeds, {faults} faults, {messages} messages, {events} events, {time} virtual s \
         in {took:.0} s"
    );
    let times = times.into_inner().unwrap_or_default();
    let [half, p99, p999] = [500, 990, 999].map(|per_mille| quantile(&times, per_mille));
    println!("messages took up to {half} ms (p50), {p99} ms (p99), {p999} ms (p99.9)");
    ok.into_inner()
}

#[expect(clippy::disallowed_methods, reason = "how long it took in real time")]
fn measure_speed() -> bool {
    let mut all = true;
    for (name, scenario) in speed::scenarios() {
        let nodes = scenario.nodes;
        let began = Instant::now();
        let done = speed::run(scenario);
        let took = began.elapsed().as_secs_f64();
        let ratio = done.time as f64 / S as f64 / took;
        let (events, messages) = (done.counts.events, done.counts.delivered);
        println!(
            "{name}: {nodes} nodes, {} virtual s, {events} events, {messages} messages \
             in {took:.2} s: {ratio:.0} times real time",
            done.time / S
        );
        // In a storm nearly all time goes into shortest paths.
        all &= ratio >= 500.0 || name == "in a storm";
    }
    all
}

#[expect(clippy::disallowed_methods, reason = "how long it took in real time")]
fn measure_cold(nodes: usize) -> bool {
    let began = Instant::now();
    let done = cold::start(nodes, 3);
    println!("{done}\nin {:.1} s of real time", began.elapsed().as_secs_f64());
    done.is_good()
}
