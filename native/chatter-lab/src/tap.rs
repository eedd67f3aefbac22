//! The system calls: TAP devices, and waiting for several of them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// A TAP device; it is gone when this is dropped. Reads and writes do not wait.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Makes a device of this name in the network namespace of the caller. Needs CAP_NET_ADMIN.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open("/dev/net/tun")?;
        // SAFETY: all fields of ifreq are plain data, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        if name.len() > room {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name is too long"));
        }
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte.cast_signed();
        }
        request.ifr_ifru.ifru_flags =
            libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).unwrap_or(0);
        // SAFETY: the descriptor is open, and TUNSETIFF takes a pointer to an ifreq that it fills.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(file)) }
    }

    /// One frame, or `None` if there is none now.
    pub fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match self.0.read(buffer) {
            Ok(length) => Ok(buffer.get(..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands a frame to the device. One that it does not take is lost, as on a wire.
    pub fn write(&mut self, frame: &[u8]) {
        let _ = self.0.write(frame);
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until one of the descriptors can be read, or so long; tells which can.
pub fn wait(descriptors: &[RawFd], longest: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 })
        .collect();
    let timeout = longest.map(|time| libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos().cast_signed()),
    });
    let pointer = timeout.as_ref().map_or(std::ptr::null(), |time| &raw const *time);
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(0);
    // SAFETY: `polled` has `count` entries, and `timeout` lives until the call returns.
    let result = unsafe { libc::ppoll(polled.as_mut_ptr(), count, pointer, std::ptr::null()) };
    match result {
        0.. => Ok(polled.iter().map(|entry| entry.revents != 0).collect()),
        _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {
            Ok(vec![false; descriptors.len()])
        }
        _ => Err(io::Error::last_os_error()),
    }
}
