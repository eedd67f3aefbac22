//! All nodes of a cluster start in the same moment.

use chatter_sim::cold;

/// Given 250 nodes with three links each (`make soak` has 1,000), expect every table to be right within
/// 5 virtual seconds, and LSPs to cross each link less than three times.
#[test]
fn a_cold_start_is_soon_over() {
    let done = cold::start(250, 3);
    println!("{done}");
    assert!(done.is_good(), "{done}");
}
