//! Carries out what `chatter-core` decides: owns sockets, the clock, entropy and tasks.
//!
//! * [`node::Node`] is one started carrier: configuration in, channels and figures out.
//! * [`driver`] is the owner task of the control plane.
//! * [`listen`] and [`dial`] turn sockets into links; [`link`] is the sending side of one, inline on
//!   any thread; [`reader`] the receiving side, one task a link.
//! * [`transport`] is what carries the bytes of a link: TCP or a Unix socket.
//! * [`channel`] binds the two halves of a core channel to routes and to their user; [`dispatch`]
//!   takes the packets of a link to channels, to the control plane or to the next hop.
//! * [`multicast`] sends and hears datagrams, and finds other nodes by them.
//! * `broadcast` drives the machine of messages to many nodes.
//! * [`host`] is what this crate wants from whoever embeds it (the NIF, a test).

mod affinity;
pub mod broadcast;
pub mod channel;
pub mod channels;
mod complaints;
pub mod config;
pub mod dial;
pub mod dispatch;
pub mod driver;
pub mod establish;
pub mod host;
mod interfaces;
mod kernel_queue;
pub mod link;
pub mod listen;
pub mod multicast;
pub mod node;
mod opening;
mod pace;
pub mod reader;
pub mod service;
mod tcp_state;
mod thread_policy;
pub mod transport;
mod workers;
