//! Whole clusters in one thread and in virtual time, on the very code that runs in a node.
//!
//! `chatter-core` decides everything in a node and knows no clock, no socket and no randomness. This
//! crate puts many nodes of it on one simulated network: connections that take time, stand still, break
//! and lie; processes that die, stand still and come back. Users on the nodes count their messages, and
//! [checkers](check) that share no code with the core look at what they get. One seed decides
//! everything: equal seeds give equal [traces](trace).
//!
//! Left out: encryption (records are damaged or whole) and threads.
//!
//! Reading order: [`scenario`] (what is asked for), [`world`] (the loop), [`run`] (the phases of a run).
#![forbid(unsafe_code)]

mod bounds;
mod channels;
pub mod check;
pub mod cold;
mod connect;
mod drive;
mod faults;
mod generate;
mod heap;
mod host;
mod inbox;
mod network;
pub mod rng;
mod route;
pub mod run;
pub mod scenario;
pub mod shrink;
pub mod speed;
mod survive;
pub mod text;
pub mod time;
pub mod topology;
pub mod trace;
mod truth;
mod users;
pub mod world;
