//! Identity, HELLO, BYE and LSP: golden bytes both ways, and hostile bytes.
//!
//! A changed vector here is a changed wire format: it needs a new version.

mod routing_sim;

use std::net::SocketAddr;
use std::sync::Arc;

use chatter_core::control::{Control, ControlConfig, ControlEvent, LinkUp};
use chatter_core::ids::{Incarnation, LinkId, NodeId};
use chatter_core::wire::PacketType;
use chatter_core::wire::hello::{ByeReason, HELLO_LEN, Hello};
use chatter_core::wire::identity::{Identity, MAX_IDENTITY_LEN};
use chatter_core::wire::lsp::{Lsp, MAX_LSP_LEN, MAX_NEIGHBOURS, Neighbour};
use chatter_core::wire::reader::WireError;
use proptest::prelude::*;
use routing_sim::{address, identity, ms, start};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn some_addresses() -> Vec<SocketAddr> {
    ["10.1.2.3:29999", "[fe80::1]:1"].map(|text| text.parse().expect("an address")).to_vec()
}

fn some_identity() -> Identity {
    Identity {
        id: NodeId(0x0102_0304_0506_0708),
        incarnation: Incarnation(0x1112_1314_1516_1718),
        name: "a@host".to_owned(),
        hold_ms: 1_000,
        hidden: false,
        listen: true,
        addresses: some_addresses(),
        dial_seq: 7,
    }
}

const IDENTITY: &str = "0102030405060708 1112131415161718 000003e8 0000000000000007 02
    06 614068 6f7374
    02 04 0a010203 752f 06 fe800000000000000000000000000001 0001";

fn some_hello() -> Hello {
    Hello {
        flags: 0,
        interval_ms: 250,
        hold_ms: 1_000,
        seq: 3,
        echo_seq: 2,
        echo_delay_us: 100_000,
        lsdb_digest: 0xdead_beef_0000_0001,
    }
}

const HELLO: &str = "0000 00fa 000003e8 00000003 00000002 000186a0 deadbeef00000001";

fn some_lsp() -> Lsp {
    Lsp {
        overload: true,
        purge: false,
        silent: false,
        lifetime_s: 3_600,
        origin: NodeId(0x0102_0304_0506_0708),
        incarnation: Incarnation(0x1112_1314_1516_1718),
        seq: 9,
        name: Arc::from("a@host"),
        addresses: some_addresses(),
        neighbours: vec![
            Neighbour { id: NodeId(1), metric: 10, incarnation: Incarnation(2) },
            Neighbour { id: NodeId(u64::MAX), metric: 0x0001_0000, incarnation: Incarnation(3) },
        ],
    }
}

const LSP: &str = "01 01 0002 00000e10 0102030405060708 1112131415161718 0000000000000009
    06 614068 6f7374
    02 04 0a010203 752f 06 fe800000000000000000000000000001 0001
    0000000000000001 0000000a 0000000000000002
    ffffffffffffffff 00010000 0000000000000003";

/// Given the golden values, expect the golden bytes, and back.
#[test]
fn golden_bytes() {
    assert_eq!(some_identity().encode(), hex(IDENTITY));
    assert_eq!(Identity::decode(&hex(IDENTITY)), Ok(some_identity()));
    assert_eq!(some_hello().to_bytes().to_vec(), hex(HELLO));
    assert_eq!(Hello::decode(&hex(HELLO)), Ok(some_hello()));
    assert_eq!(some_lsp().encode(), hex(LSP));
    assert_eq!(Lsp::decode(&hex(LSP)), Ok(some_lsp()));
    assert_eq!(ByeReason::Stop.to_bytes(), [1]);
    assert_eq!(ByeReason::decode(&[2]), Ok(ByeReason::Disconnect));
    assert_eq!(ByeReason::decode(&[77]), Ok(ByeReason::Other));
    let mut packet = hex("00006a 02");
    packet.extend_from_slice(&hex(LSP));
    packet[8..12].copy_from_slice(&[0, 0, 0, 5]);
    assert_eq!(some_lsp().packet(5), packet);
}

/// Given known input, expect the ids and hashes that other implementations compute:
/// `printf 'chatter node\0a@host' | sha256sum`.
#[test]
fn golden_hashes() {
    assert_eq!(NodeId::for_name("a@host"), NodeId(NODE_ID));
    let mut other = some_lsp();
    other.lifetime_s = 1;
    assert_eq!(some_lsp().content_hash(), other.content_hash());
    assert_eq!(some_lsp().content_hash(), CONTENT_HASH);
    other.seq += 1;
    assert_ne!(some_lsp().content_hash(), other.content_hash());
}

const NODE_ID: u64 = 0xd998_e80b_118c_bc6d;
const CONTENT_HASH: u64 = 0x1e6b_5564_318e_72a8;

/// Given every field at its limit, expect the largest encodings and no more.
#[test]
fn largest_values() {
    let mut identity = some_identity();
    identity.name = "n".repeat(255);
    identity.addresses = vec![some_addresses()[1]; 8];
    assert_eq!(identity.encode().len(), MAX_IDENTITY_LEN);
    assert_eq!(Identity::decode(&identity.encode()), Ok(identity.clone()));
    let mut lsp = some_lsp();
    lsp.name = Arc::from(identity.name.as_str());
    lsp.addresses = identity.addresses.clone();
    let neighbour = |id| Neighbour { id: NodeId(id), metric: 1, incarnation: Incarnation(1) };
    lsp.neighbours = (1..=MAX_NEIGHBOURS as u64).map(neighbour).collect();
    assert_eq!(lsp.encode().len(), MAX_LSP_LEN);
    assert_eq!(Lsp::decode(&lsp.encode()), Ok(lsp));
    identity.name.push('n');
    assert_eq!(Identity::decode(&identity.encode()).map(|i| i.name), Ok(String::new()));
}

/// Given each truncation and a trailing byte, expect an error that says so.
#[test]
fn truncated_and_trailing() {
    for at in 0..hex(IDENTITY).len() {
        let error = Identity::decode(&hex(IDENTITY)[..at]);
        assert!(matches!(error, Err(WireError::Truncated(_))), "{at}");
    }
    for at in 0..hex(LSP).len() {
        assert!(matches!(Lsp::decode(&hex(LSP)[..at]), Err(WireError::Truncated(_))), "{at}");
    }
    for at in 0..HELLO_LEN {
        assert!(matches!(Hello::decode(&hex(HELLO)[..at]), Err(WireError::Truncated(_))), "{at}");
    }
    assert!(matches!(ByeReason::decode(&[]), Err(WireError::Truncated(_))));
    let longer = |text| [hex(text), vec![0]].concat();
    assert_eq!(Identity::decode(&longer(IDENTITY)), Err(WireError::Trailing("identity")));
    assert_eq!(Lsp::decode(&longer(LSP)), Err(WireError::Trailing("lsp")));
    assert_eq!(Hello::decode(&longer(HELLO)), Err(WireError::Trailing("hello")));
    assert_eq!(ByeReason::decode(&[1, 1]), Err(WireError::Trailing("bye")));
}

/// Given a golden LSP or identity with one field changed, expect it to be refused.
#[test]
fn corrupted_fields() {
    let lsp = |at: usize, bytes: &[u8]| {
        let mut body = hex(LSP);
        body[at..at + bytes.len()].copy_from_slice(bytes);
        Lsp::decode(&body)
    };
    let neighbours = 32 + 7 + 1 + 7 + 19;
    assert_eq!(lsp(0, &[2]), Err(WireError::Invalid("lsp version")));
    assert_eq!(lsp(1, &[8]), Err(WireError::Invalid("lsp flags")));
    assert!(lsp(1, &[2]).is_err(), "a purge with neighbours");
    assert_eq!(lsp(2, &[0, 1]), Err(WireError::Trailing("lsp")));
    assert_eq!(lsp(2, &[0, 3]), Err(WireError::Truncated("neighbours")));
    assert!(matches!(lsp(2, &[4, 1]), Err(WireError::TooLong { field: "neighbours", .. })));
    assert!(matches!(lsp(2, &[255, 255]), Err(WireError::TooLong { field: "neighbours", .. })));
    assert_eq!(lsp(24, &[0; 8]), Err(WireError::Invalid("lsp seq")));
    assert!(lsp(32, &[7]).is_err(), "name length");
    assert!(lsp(32, &[5]).is_err(), "name length");
    assert_eq!(lsp(33, &[0xff]), Err(WireError::Invalid("name")));
    assert!(lsp(39, &[1]).is_err(), "address count");
    assert!(lsp(39, &[3]).is_err(), "address count");
    assert!(matches!(lsp(39, &[9]), Err(WireError::TooLong { field: "addresses", .. })));
    assert_eq!(lsp(40, &[5]), Err(WireError::Invalid("address family")));
    let order = Err(WireError::Invalid("neighbour order"));
    assert_eq!(lsp(neighbours, &[0xff; 8]), order, "the same twice");
    assert_eq!(lsp(neighbours + 20, &[0; 8]), order, "descending");
    assert_eq!(lsp(neighbours, &[1, 2, 3, 4, 5, 6, 7, 8]), order, "the origin itself");
    assert_eq!(lsp(neighbours + 8, &[0; 4]), Err(WireError::Invalid("neighbour metric")));

    let mut bytes = hex(IDENTITY);
    bytes[28] = 4;
    assert_eq!(Identity::decode(&bytes), Err(WireError::Invalid("identity flags")));
    let mut bytes = hex(HELLO);
    bytes[8..12].fill(0);
    assert_eq!(Hello::decode(&bytes), Err(WireError::Invalid("hello seq")));
}

fn with_link() -> Control {
    let now = start();
    let mut control = Control::new(ControlConfig::default(), identity("me@x", 5), 1, now);
    let peer = identity("peer@x", 1);
    let up = LinkUp {
        link: LinkId(1),
        peer,
        we_dialled: true,
        neighbour: None,
        dial_seq: 1,
        remote: address(),
    };
    control.handle_link_up(now, up);
    control
}

fn drained(control: &mut Control) -> Vec<ControlEvent> {
    control.poll_table();
    while control.poll_transmit().is_some() {}
    std::iter::from_fn(|| control.poll_event()).collect()
}

fn any_kind() -> impl Strategy<Value = PacketType> {
    any::<u8>().prop_map(|code| PacketType::from_code(code).unwrap_or(PacketType::Lsp))
}

proptest! {
    /// Given any bytes, expect an error or a value whose encoding are the same bytes.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(identity) = Identity::decode(&bytes) {
            prop_assert_eq!(identity.encode(), bytes.clone());
        }
        if let Ok(hello) = Hello::decode(&bytes) {
            prop_assert_eq!(hello.to_bytes().to_vec(), bytes.clone());
        }
        if let Ok(lsp) = Lsp::decode(&bytes) {
            prop_assert_eq!(lsp.encode(), bytes.clone());
        }
        let _ = ByeReason::decode(&bytes);
    }

    /// Given a golden body with some bytes changed, expect the same.
    #[test]
    fn near_misses(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        let mangled = |text| {
            let mut bytes = hex(text);
            for (at, byte) in &changes {
                let at = at % bytes.len();
                bytes[at] = *byte;
            }
            bytes
        };
        if let Ok(lsp) = Lsp::decode(&mangled(LSP)) {
            prop_assert_eq!(lsp.encode(), mangled(LSP));
        }
        if let Ok(identity) = Identity::decode(&mangled(IDENTITY)) {
            prop_assert_eq!(identity.encode(), mangled(IDENTITY));
        }
    }

    /// Given any packets on a link, expect no panic, and a closed link after the first bad one.
    #[test]
    fn any_packets(
        packets in prop::collection::vec(
            (any_kind(), prop::collection::vec(any::<u8>(), 0..64), any::<bool>()), 1..6)
    ) {
        let mut control = with_link();
        drained(&mut control);
        let mut now = start();
        for (kind, noise, golden) in packets {
            let mut body = if golden { hex(LSP) } else { Vec::new() };
            let at = noise.len().min(body.len());
            body.splice(..at, noise);
            let used = control.links().len();
            let result = control.handle_packet(now, LinkId(1), kind, &body);
            prop_assert!(result.is_ok() || used == 1);
            prop_assert!(result.is_ok() || control.links().is_empty());
            drained(&mut control);
            now += ms(100);
            control.handle_timeout(now);
        }
    }
}
