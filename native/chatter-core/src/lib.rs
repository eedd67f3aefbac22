//! The deciding half of Chatter, free of input and output.
//!
//! Nothing in this crate reads a clock, opens a socket, starts a thread or draws a random number:
//! time, randomness, identity and bytes are arguments, results are values to poll. The same code
//! therefore runs under tokio (`chatter-net`), inside the BEAM (`chatter-nif`) and in a simulator.
//!
//! Reading order: [`ids`] and [`wire`] (the words), [`crypto`] (how a link is secured), [`control`]
//! (the control plane: adjacencies, LSDB, routes), [`channel`] (the data plane between two nodes),
//! [`flow`] (whose a frame is), [`broadcast`] (messages to many nodes), [`relay`] (whose a packet is), [`sched`] (what a link sends next).
#![forbid(unsafe_code)]

pub mod alternates;
pub mod broadcast;
pub mod channel;
pub mod control;
pub mod crypto;
pub mod dialer;
pub mod discovery;
pub mod flow;
pub mod ids;
pub mod lsdb;
pub mod rate;
pub mod relay;
pub mod routes;
pub mod sched;
pub mod spf;
pub mod statics;
pub mod wire;
