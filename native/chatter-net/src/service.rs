//! Regular service for channels that have something under way: delayed acknowledgements, probes,
//! repeated OPENs and RESETs. Idle channels are not in the list and cost nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use chatter_core::channel::SERVICE_INTERVAL;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::channel::Channel;
use crate::node::Node;

/// The list of channels that want service.
#[derive(Default)]
pub struct Service {
    channels: Mutex<Vec<Arc<Channel>>>,
    wake: Notify,
}

impl Service {
    /// Adds a channel; the caller has set its `in_service`.
    pub(crate) fn add(&self, channel: Arc<Channel>) {
        let mut channels = self.channels.lock();
        channels.push(channel);
        if channels.len() == 1 {
            self.wake.notify_one();
        }
    }

    /// There is something to be repeated that belongs to no channel.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The task: sleeps while there is nothing to be done.
    pub(crate) async fn run(node: Arc<Node>) {
        let mut farewells = None;
        loop {
            if node.service.channels.lock().is_empty() && farewells.is_none() {
                node.service.wake.notified().await;
            }
            farewells = node.say_farewells(Instant::now());
            tokio::time::sleep(SERVICE_INTERVAL).await;
            let channels = std::mem::take(&mut *node.service.channels.lock());
            let now = Instant::now();
            for channel in channels {
                // Out of the list first: what comes up during the service puts it back in.
                channel.in_service.store(false, Ordering::SeqCst);
                if channel.handle_timer(&node, now)
                    && !channel.in_service.swap(true, Ordering::SeqCst)
                {
                    node.service.add(channel);
                }
            }
        }
    }
}
