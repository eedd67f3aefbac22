//! The data plane between two nodes: a channel is a pair of a [`send::Sender`] and a
//! [`receive::Receiver`] at either end.
//!
//! The sender cuts frames into numbered packets and keeps each until it is acknowledged, because the
//! source is the only place that survives every relay. The receiver hands frames over in order, each
//! once, and grants credit as the VM takes them. In this version a channel is one flow: total order.
//!
//! Both halves are driven by whichever thread has the bytes, under one short lock each.

pub mod receive;
pub mod send;

/// Target size of a DATA packet's content, and the size of a chunk of a large frame, in bytes. A
/// packet is the unit of scheduling: smaller ones hold others up for less time, larger ones cost less.
pub const CHUNK_LEN: usize = 16 * 1024;

/// Credit that one item uses up: its body and its header, so that many empty frames are not free.
pub fn item_cost(body_len: usize) -> u64 {
    (body_len + crate::wire::data::ITEM_HEADER_LEN) as u64
}
