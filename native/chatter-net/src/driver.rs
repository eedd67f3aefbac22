//! The owner task of the control plane: a loop over what comes in and what the core wants done. It
//! holds no knowledge of the protocol.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chatter_core::control::{CloseReason, Control, ControlEvent, LinkUp};
use chatter_core::dialer::{NeighbourId, NeighbourSpec};
use chatter_core::ids::LinkId;
use chatter_core::wire::PacketType;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::establish::EstablishError;
use crate::link::Link;
use crate::node::Node;

/// Inputs taken before what they cause is carried out.
const BATCH: usize = 64;

/// A timer that fires so late shows that the whole process stood still: its user could not show life.
const HELD_UP: Duration = Duration::from_millis(500);

/// Something to run on the control plane's own task.
pub(crate) type Command = Box<dyn FnOnce(&mut Control, Instant) + Send>;

/// What comes in.
pub(crate) enum Input {
    LinkUp(Box<LinkUp>),
    LinkDown(LinkId),
    Packet { link: LinkId, kind: PacketType, body: Vec<u8> },
    DialFailed(NeighbourId),
    Run(Command),
}

pub(crate) async fn run(node: Arc<Node>, mut control: Control, mut inbox: mpsc::Receiver<Input>) {
    let mut inputs = Vec::with_capacity(BATCH);
    let mut blocked = BTreeSet::new();
    carry_out(&node, &mut control, &mut blocked);
    loop {
        let deadline = control.poll_timeout();
        let wait = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            biased;
            n = inbox.recv_many(&mut inputs, BATCH) => {
                if n == 0 {
                    return;
                }
            }
            () = node.control_room.notified() => {}
            () = sleep_until(wait.into()) => {}
        }
        let now = Instant::now();
        for input in inputs.drain(..) {
            handle(&node, &mut control, now, input);
        }
        if deadline.is_some_and(|at| now >= at) {
            if deadline.is_some_and(|at| now - at > HELD_UP) {
                node.forgive_silence();
            }
            tell_alive(&node, &mut control, now);
            control.set_silent(now, node.is_silent());
            control.handle_timeout(now);
        }
        blocked.retain(|link| {
            let waits = node.waits_for_control(*link);
            if !waits {
                control.handle_link_blocked(now, *link, false);
            }
            waits
        });
        carry_out(&node, &mut control, &mut blocked);
    }
}

fn handle(node: &Arc<Node>, control: &mut Control, now: Instant, input: Input) {
    match input {
        Input::LinkUp(up) => control.handle_link_up(now, *up),
        Input::LinkDown(link) => control.handle_link_down(now, link),
        Input::Packet { link, kind, body } => {
            if let Err(error) = control.handle_packet(now, link, kind, &body)
                && let Some(link) = node.link(link)
            {
                tracing::error!(peer = %link.peer.name, %error, "malformed packet: link closed");
                link.close();
            }
        }
        Input::DialFailed(neighbour) => {
            if let Some(multicast) = &node.multicast
                && let Some(NeighbourSpec::Name(name)) = control.neighbour(neighbour)
            {
                multicast.dial_failed(name);
            }
            control.handle_dial_failed(now, neighbour);
        }
        Input::Run(command) => command(control, now),
    }
}

/// Links that carried anything since they were last looked at are alive, hello or not.
fn tell_alive(node: &Node, control: &mut Control, now: Instant) {
    let now_ms = node.now_ms();
    for link in node.links() {
        let ago = now_ms.saturating_sub(link.heard_ms.load(Ordering::Relaxed));
        if let Some(at) = now.checked_sub(Duration::from_millis(ago)) {
            control.handle_alive(at, link.id);
        }
    }
}

/// Carries out what the core wants, in the order that its contract asks for. Links that have enough to
/// write come into `blocked`.
fn carry_out(node: &Arc<Node>, control: &mut Control, blocked: &mut BTreeSet<LinkId>) {
    // Tables before packets and events: who hears of a change can rely on the table.
    if let Some(table) = control.poll_table() {
        node.publish(Some(table.clone()));
        node.broadcast_table(table);
    }
    while let Some((link, packet)) = control.poll_transmit() {
        if node.transmit_control(link, packet) && blocked.insert(link) {
            control.handle_link_blocked(Instant::now(), link, true);
        }
    }
    while let Some(event) = control.poll_event() {
        if let ControlEvent::CloseLink { link, reason } = &event
            && let Some(link) = node.link(*link)
        {
            report(node, &link, *reason);
            link.close();
        }
        node.apply(&event);
        node.host.event(&event);
    }
}

/// Says why a link is closed, where the operator should know.
fn report(node: &Node, link: &Link, reason: CloseReason) {
    match reason {
        CloseReason::TooManyLinks => {
            node.complain(link.remote, &EstablishError::TooManyLinks, false);
        }
        CloseReason::HoldExpired => {
            tracing::warn!(peer = %link.peer.name, "link closed: nothing heard for hold_ms");
        }
        _ => tracing::debug!(peer = %link.peer.name, ?reason, "link closed"),
    }
}
