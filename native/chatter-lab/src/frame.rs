//! What the switch has to know of a frame: its ports, and how a TCP segment becomes a reset.

const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Where a frame goes, by its destination address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// One port, counted from 0.
    Port(usize),
    /// All ports but the one it came from: broadcast and multicast.
    All,
    /// No port of this switch, or no frame at all.
    Nowhere,
}

/// The address of a port's device: `02:00:00:00:hi:lo`, counted from 1.
pub fn address(port: usize) -> [u8; 6] {
    let [.., high, low] = (port + 1).to_be_bytes();
    [2, 0, 0, 0, high, low]
}

/// Whether a frame is for several ports.
pub fn is_to_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 == 1)
}

/// Looks at the destination address of a frame for a switch with so many ports.
pub fn destination(frame: &[u8], ports: usize) -> Destination {
    match frame {
        _ if frame.len() >= ETHERNET && is_to_group(frame) => Destination::All,
        [2, 0, 0, 0, high, low, ..] if frame.len() >= ETHERNET => {
            let number = usize::from(u16::from_be_bytes([*high, *low]));
            if (1..=ports).contains(&number) {
                Destination::Port(number - 1)
            } else {
                Destination::Nowhere
            }
        }
        _ => Destination::Nowhere,
    }
}

/// Turns a segment of an open TCP connection over IPv4 into one that resets the connection at the
/// receiver. `false`, and the frame as it was, if it is none or opens or ends a connection.
pub fn make_reset(frame: &mut Vec<u8>) -> bool {
    let Some(tcp) = tcp_offset(frame) else {
        return false;
    };
    let Some(header) = frame.get_mut(tcp..tcp + 20) else {
        return false;
    };
    if header[13] & (SYN | FIN | RST) != 0 || header[13] & ACK == 0 {
        return false;
    }
    header[12] = 5 << 4;
    header[13] = RST | ACK;
    header[14..20].fill(0); // window, checksum, urgent
    frame.truncate(tcp + 20);
    write_checksums(frame, tcp);
    true
}

fn tcp_offset(frame: &[u8]) -> Option<usize> {
    if frame.get(12..14)? != ETHERTYPE_IPV4 || *frame.get(ETHERNET + 9)? != TCP {
        return None;
    }
    let fragment = u16::from_be_bytes([*frame.get(ETHERNET + 6)?, *frame.get(ETHERNET + 7)?]);
    if fragment & 0x3fff != 0 {
        return None;
    }
    let header = usize::from(frame.get(ETHERNET)? & 0x0f) * 4;
    (header >= 20).then_some(ETHERNET + header)
}

fn write_checksums(frame: &mut [u8], tcp: usize) {
    let length = u16::try_from(frame.len() - ETHERNET).unwrap_or(u16::MAX);
    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let ip = checksum(0, &frame[ETHERNET..tcp]);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&ip.to_be_bytes());
    let pseudo = sum(0, &frame[ETHERNET + 12..ETHERNET + 20]) + u32::from(TCP) + 20;
    let check = checksum(pseudo, &frame[tcp..]);
    frame[tcp + 16..tcp + 18].copy_from_slice(&check.to_be_bytes());
}

fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut total = sum(start, bytes);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap_or(0)
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(start, |total, pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        total + u32::from(u16::from_be_bytes([pair[0], low]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(address(1));
        frame.extend(address(0));
        frame.extend(ETHERTYPE_IPV4);
        frame.extend([0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x80, 0, 0x75, 0x2f, 0, 0, 0, 7, 0, 0, 0, 9]);
        frame.extend([8 << 4, flags, 1, 0, 0, 0, 0, 0]);
        frame.extend([1; 12]); // options
        frame.extend(payload);
        let tcp = ETHERNET + 20;
        write_checksums(&mut frame, tcp);
        frame
    }

    /// Given the addresses of ports, broadcast and strangers, expect each to be told apart.
    #[test]
    fn destinations() {
        let to = |address: [u8; 6]| destination(&[&address[..], &[0; 8]].concat(), 300);
        assert_eq!(to(address(0)), Destination::Port(0));
        assert_eq!(to(address(299)), Destination::Port(299));
        assert_eq!(to(address(300)), Destination::Nowhere);
        assert_eq!(to([0xff; 6]), Destination::All);
        assert_eq!(to([0x01, 0, 0x5e, 1, 1, 1]), Destination::All);
        assert_eq!(to([2, 0, 0, 0, 0, 0]), Destination::Nowhere);
        assert_eq!(destination(&[0xff; 13], 4), Destination::Nowhere);
    }

    /// Given a segment with options and data, expect a reset with the same sequence number and
    /// both checksums right.
    #[test]
    fn a_segment_becomes_a_reset() {
        let mut frame = segment(ACK | 0x08, b"data");
        let before = frame.clone();
        assert!(make_reset(&mut frame));
        assert_eq!(frame.len(), ETHERNET + 40);
        assert_eq!(frame[..16], before[..16]);
        assert_eq!(frame[ETHERNET + 20..ETHERNET + 32], before[ETHERNET + 20..ETHERNET + 32]);
        assert_eq!(frame[ETHERNET + 33], RST | ACK);
        assert_eq!(checksum(0, &frame[ETHERNET..ETHERNET + 20]), 0);
        let pseudo = sum(0, &frame[ETHERNET + 12..ETHERNET + 20]) + 6 + 20;
        assert_eq!(checksum(pseudo, &frame[ETHERNET + 20..]), 0);
    }

    /// Given segments that open, end or reset, other protocols and truncated frames, expect them
    /// unchanged.
    #[test]
    fn other_frames_stay() {
        let mut others: Vec<Vec<u8>> =
            [SYN, SYN | ACK, FIN | ACK, RST].map(|flags| segment(flags, b"")).to_vec();
        let whole = segment(ACK, b"data");
        others.extend((0..ETHERNET + 40).map(|length| whole[..length].to_vec()));
        let mut udp = whole.clone();
        udp[ETHERNET + 9] = 17;
        others.push(udp);
        for frame in others {
            let mut changed = frame.clone();
            assert!(!make_reset(&mut changed));
            assert_eq!(changed, frame);
        }
    }
}
