//! The BEAM's side of a node: terms in, terms out. No decision is taken here.
//!
//! Messages to Erlang are sent from the runtime's threads only, as `enif_send` demands. The library
//! must never be unloaded while a node runs: see the head of `chatter_nif.erl`.

mod allocator;
mod atoms;
mod broadcast;
mod channel;
mod config;
mod etf;
mod fetch;
mod found;
mod host;
mod info;
mod log;
mod manners;
mod node;
mod pinned;
mod post;
mod sink;
mod small;
mod terms;
mod waiting;

fn load(_env: rustler::Env, _info: rustler::Term) -> bool {
    log::install();
    true
}

rustler::init!("chatter_nif", load = load);
