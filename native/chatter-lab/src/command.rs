//! The lines that control the switch. Each is answered by one line: `ok`, `ok FIGURES`, or
//! `error WHY`. Ports count from 1 here, and `*` stands for all of them.
//!
//! ```text
//! set A B KEY=VALUE ...  frames from A to B: cut=0|1 loss=PPM group_loss=PPM
//!                        duplicate=PPM reorder=PPM corrupt=PPM delay=US jitter=US
//!                        rate=BYTES_PER_SECOND; others stay
//! clear A B              frames from A to B pass as they are
//! reset A B              the next TCP segment from A to B resets its connection
//! stats                  figures since the start
//! ```

use crate::fabric::{Fabric, MILLION, Shape};

/// Carries out one line; the result is the answer, without the line's end.
pub fn run(fabric: &mut Fabric, line: &str) -> String {
    match carry_out(fabric, line) {
        Ok(answer) => answer,
        Err(why) => format!("error {why}"),
    }
}

fn carry_out(fabric: &mut Fabric, line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["stats"] => return Ok(stats(fabric)),
        ["set", from, to, settings @ ..] => {
            for (from, to) in pairs(fabric.ports(), from, to)? {
                let mut shape = *fabric.shape_mut(from, to);
                for setting in settings {
                    apply(&mut shape, setting)?;
                }
                *fabric.shape_mut(from, to) = shape;
            }
        }
        ["clear", from, to] => {
            for (from, to) in pairs(fabric.ports(), from, to)? {
                *fabric.shape_mut(from, to) = Shape::default();
            }
        }
        ["reset", from, to] => {
            for (from, to) in pairs(fabric.ports(), from, to)? {
                fabric.reset_next(from, to);
            }
        }
        _ => return Err(format!("not a command: {line}")),
    }
    Ok("ok".into())
}

fn pairs(ports: usize, from: &str, to: &str) -> Result<Vec<(usize, usize)>, String> {
    let (from, to) = (range(ports, from)?, range(ports, to)?);
    let all = from.flat_map(|a| to.clone().map(move |b| (a, b)));
    Ok(all.filter(|(a, b)| a != b).collect())
}

fn range(ports: usize, word: &str) -> Result<std::ops::Range<usize>, String> {
    match word.parse::<usize>() {
        _ if word == "*" => Ok(0..ports),
        Ok(port) if (1..=ports).contains(&port) => Ok(port - 1..port),
        _ => Err(format!("no such port: {word}")),
    }
}

fn apply(shape: &mut Shape, setting: &str) -> Result<(), String> {
    let wrong = || format!("not a setting: {setting}");
    let (key, value) = setting.split_once('=').ok_or_else(wrong)?;
    let value: u64 = value.parse().map_err(|_| wrong())?;
    let ppm = || u32::try_from(value).ok().filter(|ppm| *ppm <= MILLION).ok_or_else(wrong);
    match key {
        "cut" => shape.cut = value != 0,
        "loss" => shape.loss_ppm = ppm()?,
        "group_loss" => shape.group_loss_ppm = ppm()?,
        "duplicate" => shape.duplicate_ppm = ppm()?,
        "reorder" => shape.reorder_ppm = ppm()?,
        "corrupt" => shape.corrupt_ppm = ppm()?,
        "delay" => shape.delay_us = value,
        "jitter" => shape.jitter_us = value.min(u64::from(u32::MAX)),
        "rate" => shape.rate = value,
        _ => return Err(wrong()),
    }
    Ok(())
}

fn stats(fabric: &Fabric) -> String {
    let s = fabric.stats();
    format!(
        "ok forwarded={} cut={} lost={} full={} duplicated={} reordered={} corrupted={} resets={}",
        s.forwarded, s.cut, s.lost, s.full, s.duplicated, s.reordered, s.corrupted, s.resets
    )
}
