//! How what a process sends over connections is to be carried (`chatter:set_class/2`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use chatter_core::channel::options::SendOptions;
use chatter_core::flow::{FlowKey, Reading};
use parking_lot::{RwLock, RwLockReadGuard};
use rustler::Atom;

use crate::atoms;
use crate::host::senders;
use crate::post::PostOptions;

/// So many processes can have a class at a time.
const LIMIT: usize = 65_536;

/// By the key of their flow.
static MANNERS: RwLock<BTreeMap<u64, SendOptions>> = RwLock::new(BTreeMap::new());

/// Whether there are any: mostly there are none.
static ANY: AtomicBool = AtomicBool::new(false);

/// The manners of all processes, for one batch of frames.
pub(crate) struct Manners(Option<RwLockReadGuard<'static, BTreeMap<u64, SendOptions>>>);

impl Manners {
    pub(crate) fn now() -> Self {
        Self(ANY.load(Ordering::Relaxed).then(|| MANNERS.read()))
    }

    /// How a frame that was read is to be carried. Only what the VM can do without may be late or lost.
    pub(crate) fn of(&self, reading: Reading) -> SendOptions {
        let Reading { key: flow, droppable } = reading;
        let plain = SendOptions { flow, droppable, ..SendOptions::default() };
        let (Some(manners), FlowKey::Flow(key)) = (&self.0, reading.key) else { return plain };
        match manners.get(&key) {
            Some(manner) if droppable => SendOptions { flow, ..*manner },
            Some(manner) => SendOptions { class: manner.class, ..plain },
            None => plain,
        }
    }
}

/// `set_manner(Sender, Options) -> ok | full`: what the process sends over connections from now on.
#[rustler::nif]
fn set_manner((id, serial): (u32, u32), options: PostOptions) -> Atom {
    let mut manners = MANNERS.write();
    let key = u64::from(id) << 32 | u64::from(serial);
    if manners.len() >= LIMIT && !manners.contains_key(&key) {
        return atoms::full();
    }
    manners.insert(key, SendOptions::from(&options));
    ANY.store(true, Ordering::Relaxed);
    atoms::ok()
}

/// `unset_manner(Sender) -> ok`: as others again.
#[rustler::nif]
fn unset_manner((id, serial): (u32, u32)) -> Atom {
    let mut manners = MANNERS.write();
    manners.remove(&(u64::from(id) << 32 | u64::from(serial)));
    ANY.store(!manners.is_empty(), Ordering::Relaxed);
    atoms::ok()
}

/// `manners() -> [Sender]`: who has one.
#[rustler::nif]
fn manners() -> Vec<(u32, u32)> {
    senders(MANNERS.read().keys().copied().collect())
}
