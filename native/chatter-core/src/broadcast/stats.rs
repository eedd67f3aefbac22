//! Figures of broadcasts.

/// What happened since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BroadcastStats {
    /// Own messages.
    pub sent: u64,
    /// Packets sent to neighbours.
    pub tree_packets: u64,
    /// Packets that came from neighbours.
    pub packets_in: u64,
    /// Messages delivered here.
    pub delivered: u64,
    /// Messages, or parts, that came again.
    pub duplicates: u64,
    /// Transfers that were planned anew because a link or a node went, or did not answer.
    pub replanned: u64,
    /// Packets sent back, or got back, because there was no memory for them.
    pub busy: u64,
    /// Targets that no message went to since there was no route to them.
    pub unreachable: u64,
    /// Targets given up with messages under way.
    pub lost: u64,
    /// Times that missing messages were given up by a receiver.
    pub gaps: u64,
    /// Messages that could not be read.
    pub damaged: u64,
    /// Datagrams with messages sent by multicast, repairs apart.
    pub casts: u64,
    /// Targets that they were for.
    pub cast_targets: u64,
    /// Of these, the ones that have acknowledged them.
    pub cast_acked: u64,
    /// Of these, the ones that were left to links: they did not acknowledge in time, or asked for it.
    pub left_to_links: u64,
    /// Datagrams with messages for this node that came by multicast.
    pub casts_in: u64,
    /// Messages that came here by multicast first.
    pub cast_messages: u64,
    /// Datagrams that told how far messages were sent, to nodes that had not acknowledged.
    pub hellos_out: u64,
    /// Such datagrams of others, for this node.
    pub hellos_in: u64,
    /// Requests for missing messages sent by multicast.
    pub naks_out: u64,
    /// Such requests of others.
    pub naks_in: u64,
    /// Requests of this node that waited since another had asked for the same.
    pub naks_suppressed: u64,
    /// Times that such a request was answered, by multicast or over links.
    pub repairs: u64,
    /// Datagrams with messages that others had sent by multicast, for nodes that miss them.
    pub repairs_of_others: u64,
    /// Nodes that no longer count as hearing this one, since datagrams did not arrive there.
    pub proofs_lost: u64,
    /// Times that the rate of multicast was halved.
    pub rate_cuts: u64,
    /// Batches not sent by multicast: larger than a datagram.
    pub over_datagram: u64,
    /// Batches not sent by multicast: the rate did not allow it.
    pub over_rate: u64,
    /// Datagrams that could not be sent.
    pub unsent: u64,
    /// Datagrams for this node that were dropped for want of memory.
    pub casts_dropped: u64,
}
