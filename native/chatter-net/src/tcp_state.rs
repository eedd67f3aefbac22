//! What the kernel knows of a TCP connection, and how much it may have outstanding: socket options that
//! `socket2` does not have (tcp(7), socket(7)). Linux only; elsewhere there is nothing to be known or bounded.

use std::time::Duration;

use tokio::net::TcpStream;

/// A part of `struct tcp_info`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpState {
    /// Bytes acknowledged so far.
    pub(crate) acked: u64,
    /// For how long so far something was outstanding.
    pub(crate) busy: Duration,
    /// The least round trip lately.
    pub(crate) min_rtt: Duration,
}

/// The state of a connection; `None` where the system does not tell (Linux before 4.10), and before there was
/// a round trip.
#[cfg(target_os = "linux")]
pub(crate) fn read(socket: &TcpStream) -> Option<TcpState> {
    use std::mem::{offset_of, size_of, zeroed};
    use std::os::fd::AsRawFd;

    // SAFETY: a structure of integers.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes to `info`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut len)
    };
    let needed = offset_of!(libc::tcp_info, tcpi_busy_time) + size_of::<u64>();
    // The kernel has no round trip yet when it gives the largest number.
    (result == 0 && len as usize >= needed && info.tcpi_min_rtt != u32::MAX).then(|| TcpState {
        acked: info.tcpi_bytes_acked,
        busy: Duration::from_micros(info.tcpi_busy_time),
        min_rtt: Duration::from_micros(info.tcpi_min_rtt.into()),
    })
}

/// Bounds what a connection has outstanding to about so many bytes, at least 4.5 KiB and at most twice
/// `net.core.wmem_max`, or leaves it to the kernel again.
#[cfg(target_os = "linux")]
pub(crate) fn bound(socket: &TcpStream, bytes: Option<u32>) -> std::io::Result<()> {
    match bytes {
        // The kernel doubles the number, for what its own records take.
        Some(bytes) => socket2::SockRef::from(socket).set_send_buffer_size(bytes as usize / 2),
        None => unlock(socket),
    }
}

/// Whether a bound can be taken back (Linux 5.14 and later); there must be none yet.
#[cfg(target_os = "linux")]
pub(crate) fn can_bound(socket: &TcpStream) -> bool {
    unlock(socket).is_ok()
}

#[cfg(target_os = "linux")]
fn unlock(socket: &TcpStream) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;

    let none: libc::c_int = 0;
    let len = size_of_val(&none) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_BUF_LOCK);
    // SAFETY: the descriptor is open, and the kernel reads `len` bytes of `none`.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const none).cast(), len) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read(_: &TcpStream) -> Option<TcpState> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn bound(_: &TcpStream, _: Option<u32>) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn can_bound(_: &TcpStream) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Given a connection that has carried some megabytes under a bound and without, expect the kernel to
    /// have kept to the bound, and to have gone beyond it after that; and to tell what was acknowledged.
    #[tokio::test]
    async fn a_bound_holds_until_it_is_taken_back() {
        const BOUND: u32 = 32 * 1024;
        const LEN: usize = 16 * 1024 * 1024;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut sender = TcpStream::connect(address).await.unwrap();
        let (mut receiver, _) = listener.accept().await.unwrap();
        if !can_bound(&sender) {
            return; // An older kernel.
        }
        tokio::spawn(async move {
            let mut bytes = vec![0; 1024 * 1024];
            while receiver.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
        });
        let bytes = vec![7; LEN];
        bound(&sender, Some(BOUND)).unwrap();
        sender.write_all(&bytes).await.unwrap();
        assert_eq!(SockRef::from(&sender).send_buffer_size().unwrap(), BOUND as usize);
        bound(&sender, None).unwrap();
        sender.write_all(&bytes).await.unwrap();
        assert!(SockRef::from(&sender).send_buffer_size().unwrap() > BOUND as usize);
        let state = read(&sender).unwrap();
        assert!(state.acked > LEN as u64 && state.acked <= 2 * LEN as u64 + 1, "{state:?}");
        assert!(state.busy > Duration::ZERO && state.min_rtt < Duration::from_secs(1), "{state:?}");
    }
}
