//! The link handshake over a socket: who speaks when, in what time, and what is logged about those
//! who fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chatter_core::control::LinkUp;
use chatter_core::crypto::handshake::{
    Established, H1_LEN, H2_PREFIX_LEN, HandshakeConfig, HandshakeError, Initiator, Responder,
    h2_len, h3_len,
};
use chatter_core::crypto::record::RECORD_HEADER_LEN;
use chatter_core::dialer::NeighbourId;
use chatter_core::wire::identity::Identity;
use chatter_core::wire::reader::WireError;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::driver::Input;
use crate::kernel_queue::LOWAT_START;
use crate::link::{Link, LinkLimits};
use crate::node::Node;
use crate::reader;
use crate::transport::{Connection, Handshaking, set_lowat};

/// Why a connection did not become a link.
#[derive(Debug, Error)]
pub enum EstablishError {
    /// The other end is not one of ours, or has other settings.
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    /// It has the key, but says what makes no sense.
    #[error("the peer's identity is malformed: {0}")]
    Identity(#[from] WireError),
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Nothing answers at the address.
    #[error("no connection within 1.2 s")]
    Unreachable,
    /// It took longer than `handshake_timeout_ms`.
    #[error("no answer within handshake_timeout_ms")]
    Timeout,
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Entropy,
    /// `max_links` is reached.
    #[error("max_links is reached")]
    TooManyLinks,
}

/// What is known of a link besides its keys.
pub(crate) struct Origin {
    pub remote: SocketAddr,
    /// For a dialled link: for which neighbour, and the dialler's number of the dial.
    pub dialled: Option<(NeighbourId, u64)>,
}

fn entropy() -> Result<[u8; 32], EstablishError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| EstablishError::Entropy)?;
    Ok(bytes)
}

/// The handshake from the dialling end.
pub(crate) async fn initiate(
    node: &Node,
    stream: &mut dyn Handshaking,
    dial_seq: u64,
) -> Result<Established, EstablishError> {
    let config = HandshakeConfig::new(node.config.encryption);
    let (initiator, h1) = Initiator::new(&node.config.key, config, entropy()?)?;
    stream.write_all(&h1).await?;
    let mut prefix = [0; H2_PREFIX_LEN];
    stream.read_exact(&mut prefix).await?;
    let mut h2 = vec![0; h2_len(&prefix)?];
    h2[..H2_PREFIX_LEN].copy_from_slice(&prefix);
    stream.read_exact(&mut h2[H2_PREFIX_LEN..]).await?;
    let (established, h3) = initiator.read_h2(&h2, &node.identity(dial_seq))?;
    stream.write_all(&h3).await?;
    Ok(established)
}

/// The handshake from the accepting end. Nothing is sent to who does not prove to have the key.
pub(crate) async fn respond(
    node: &Node,
    stream: &mut dyn Handshaking,
) -> Result<Established, EstablishError> {
    let config = HandshakeConfig::new(node.config.encryption);
    let mut h1 = [0; H1_LEN];
    stream.read_exact(&mut h1).await?;
    let (responder, h2) =
        Responder::read_h1(&node.config.key, config, &h1, &node.identity(0), entropy()?)?;
    stream.write_all(&h2).await?;
    let mut header = [0; RECORD_HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; h3_len(&header)?];
    stream.read_exact(&mut body).await?;
    Ok(responder.read_h3(header, &mut body)?)
}

/// Settings that every socket of a link has.
pub(crate) fn tune(socket: &Connection) -> std::io::Result<()> {
    if let Connection::Tcp(stream) = socket {
        set_lowat(stream, LOWAT_START);
        stream.set_nodelay(true)?;
    }
    Ok(())
}

/// Turns an established connection into a link: tells the control plane, starts its tasks.
pub(crate) async fn adopt(
    node: &Arc<Node>,
    socket: Connection,
    established: Established,
    origin: Origin,
) -> Result<(), EstablishError> {
    let peer = Identity::decode(&established.peer_identity)?;
    let id = node.next_link_id();
    let session = established.session;
    // The socket moves to the thread that will serve it.
    let worker = node.workers.for_link();
    let transport = socket.transport();
    let (read, write) = socket.split(worker)?;
    let limits = LinkLimits {
        relay_queue: node.config.relay_queue,
        control_queue: node.config.control_queue,
        room: node.control_room.clone(),
    };
    let socket = (transport, write);
    let link = Arc::new(Link::new(id, peer.clone(), origin.remote, session.sealer, socket, limits));
    link.heard_ms.store(node.now_ms(), Ordering::Relaxed);
    if !node.add_link(&link) {
        return Err(EstablishError::TooManyLinks);
    }
    let up = LinkUp {
        link: id,
        dial_seq: origin.dialled.map_or(peer.dial_seq, |(_, seq)| seq),
        peer,
        we_dialled: origin.dialled.is_some(),
        neighbour: origin.dialled.map(|(neighbour, _)| neighbour),
        remote: origin.remote,
    };
    node.control.send(Input::LinkUp(Box::new(up))).await.ok();
    worker.spawn(link.clone().write_loop());
    worker.spawn(reader::run(node.clone(), link, read, session.opener));
    Ok(())
}
