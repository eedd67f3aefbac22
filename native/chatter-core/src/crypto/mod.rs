//! How a link is secured: the cluster key, the handshake, the records.
