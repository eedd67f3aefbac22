//! Every atom that this library makes. None ever comes from a peer.

rustler::atoms! {
    ok, error, undefined, none, name, address,
    // events
    chatter, chatter_event, chatter_log, chatter_accept, chatter_ready, more, idle,
    chatter_writable, chatter_resume, hold, all, late, opened, handshake, closed, dial, node_up, node_down, node_lost, node_found,
    node_named, name_clash, dial_failed,
    // results
    full, no_route, not_started, already_started, busy, port, id, incarnation,
    // why a channel ended
    connection_closed, node_gone, connection_refused, protocol_error, packets_lost, unused,
    // figures
    peer, peer_id, remote, transport, tcp, unix, state, since_ms, rtt_us, metric, dialled, bytes_in, bytes_out, packets_in,
    packets_out, relayed, queued_own, queued_transit, dropped, marked, blocked, up, sync, opening, open,
    closing, frames_out, grants, waiting_bytes, unacked_bytes, retransmits, duplicates, srtt_us, window,
    kind, distribution, messages, opened_here, window_cuts, flows, flows_retired, flows_in, fences, chunks, held, early, given_up, lost_in, packets, high,
    urgent, normal, low, talkers, sender, frames, bytes, queued, queue_delay_us, max_queue_delay_us,
    own_delay_us, transit_delay_us, marks_out, marks_in, credit, rescued,
    channels, links, nodes, relay_drops, unreachable_notices, refused_connections,
    evicted_handshakes, lsdb_size, neighbours, draining, transit_packets, transit_idle_ms,
    // broadcasts
    chatter_broadcasts, too_large, large, soon, unsuited, sent, tree_packets, delivered, replanned, unreachable, lost, gaps, damaged,
    own_bytes, kept_bytes, proofs, casts, cast_targets, cast_acked, left_to_links, casts_in, cast_messages, hellos_out, hellos_in,
    naks_out, naks_in,
    naks_suppressed, repairs, proofs_lost, rate_cuts, over_datagram, over_rate, unsent, casts_dropped,
    repairs_of_others,
    // multicast
    multicast, interfaces, rate, addresses, heard_ms, hears_us_ms,
    // log levels
    debug, info, warning, notice,
}
