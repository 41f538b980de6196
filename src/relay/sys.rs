//! System calls that rustix, socket2 and tokio do not offer as safe functions. The only module with `unsafe` code.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io;
use rustix::ioctl::{Getter, Opcode, ioctl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `SIOCOUTQ` (tcp(7)), the same request as `TIOCOUTQ` for terminals.
const SIOCOUTQ: Opcode = 0x5411;

/// The number of bytes written to a TCP socket that its peer has not acknowledged.
pub(crate) fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    // SAFETY: SIOCOUTQ takes no input and stores one `int`, which is what this getter makes room for; on a
    // descriptor that is no socket it fails or stores the same type (TIOCOUTQ).
    #[expect(unsafe_code, reason = "neither socket2 nor rustix offers SIOCOUTQ")]
    let bytes = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new())? };
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// What `TCP_INFO` (tcp(7)) says of a socket, also after its connection has ended or was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// Packets that were sent and not acknowledged.
    pub(crate) in_flight: u32,
    /// Time since the last acknowledgement: of data, keepalives or window probes.
    pub(crate) last_ack: Duration,
    /// Time since anything was received: data or an acknowledgement.
    pub(crate) last_heard: Duration,
    /// The smoothed round-trip time, once one was measured.
    pub(crate) rtt: Option<Duration>,
    /// Segments sent again, since the connect.
    pub(crate) retransmits: u32,
}

/// Reads `TCP_INFO` of a socket.
pub(crate) fn tcp_info(socket: impl AsFd) -> std::io::Result<TcpInfo> {
    let info: libc::tcp_info = socket_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    let last_ack = Duration::from_millis(info.tcpi_last_ack_recv.into());
    let last_heard = last_ack.min(Duration::from_millis(info.tcpi_last_data_recv.into()));
    let rtt = Some(info.tcpi_rtt).filter(|micros| *micros > 0).map(|micros| Duration::from_micros(micros.into()));
    Ok(TcpInfo { in_flight: info.tcpi_unacked, last_ack, last_heard, rtt, retransmits: info.tcpi_total_retrans })
}

/// The value of a socket option: it consists of integers, for which zeroes and whatever the kernel writes are valid.
trait OptionValue: Copy {}

impl OptionValue for libc::tcp_info {}
impl OptionValue for libc::ucred {}

fn socket_option<T: OptionValue>(socket: impl AsFd, level: c_int, name: c_int) -> std::io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes into `value`, which has that many; the descriptor is borrowed for the
    // call.
    #[expect(unsafe_code, reason = "rustix lacks TCP_INFO, and reads a process ID that cannot be 0")]
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: see `OptionValue`.
    #[expect(unsafe_code, reason = "as above")]
    Ok(unsafe { value.assume_init() })
}

/// Makes a bind to port zero leave the choice of the port to the connect (ip(7), `IP_BIND_ADDRESS_NO_PORT`), also for IPv6.
pub(crate) fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let enabled: c_int = 1;
    // SAFETY: the kernel reads one `int` from `enabled`, which lives for the call; the descriptor is borrowed for it.
    #[expect(unsafe_code, reason = "neither socket2 nor rustix offers IP_BIND_ADDRESS_NO_PORT")]
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const enabled).cast(),
            libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(0),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(io::Errno::INVAL))
    }
}

/// The user and the process at the other end of a Unix socket, when it was connected; process 0 is in another PID namespace.
pub(crate) fn peer_credentials(socket: impl AsFd) -> std::io::Result<(u32, u32)> {
    let libc::ucred { uid, pid, .. } = socket_option(socket, libc::SOL_SOCKET, libc::SO_PEERCRED)?;
    Ok((uid, u32::try_from(pid).unwrap_or(0)))
}

/// Registers a descriptor with the runtime, to wait until it is readable.
pub(crate) fn watch(descriptor: Arc<OwnedFd>) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `Arc<OwnedFd>` returns the same open descriptor for as long as it exists, and cannot be changed.
    #[expect(unsafe_code, reason = "tokio has no safe function for descriptors that are no sockets")]
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn unacknowledged_counts_what_the_peer_has_no_room_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        assert_eq!(unacknowledged(&sender), Ok(0));

        sender.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(written) = sender.write(&[0; 16384]) {
            sent += written;
        }
        assert!(unacknowledged(&sender).unwrap() > 0, "both socket buffers are full");

        receiver.read_exact(&mut vec![0; sent]).unwrap();
        while unacknowledged(&sender).unwrap() > 0 {
            std::thread::yield_now();
        }
        assert!(unacknowledged(std::fs::File::open("/dev/null").unwrap()).is_err(), "not a socket");
    }

    #[test]
    fn tcp_info_reports_acknowledgements() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        sender.write_all(b"x").unwrap();
        receiver.read_exact(&mut [0]).unwrap();
        receiver.write_all(b"y").unwrap();
        sender.read_exact(&mut [0]).unwrap();
        let info = tcp_info(&sender).unwrap();
        assert_eq!((info.in_flight, info.retransmits), (0, 0));
        assert!(info.last_ack < Duration::from_secs(10), "{info:?}");
        assert!(info.rtt.is_some_and(|rtt| rtt < Duration::from_secs(10)), "{info:?}");
        // The connection is reset.
        sender.write_all(b"unread").unwrap();
        receiver.peek(&mut [0]).unwrap();
        drop(receiver);
        sender.read_exact(&mut [0]).unwrap_err();
        assert_eq!(tcp_info(&sender).unwrap().rtt.is_some(), info.rtt.is_some());
        assert!(tcp_info(std::fs::File::open("/dev/null").unwrap()).is_err(), "not a socket");
    }

    #[test]
    fn the_peer_of_a_unix_socket_is_known() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let user = rustix::process::geteuid().as_raw();
        assert_eq!(peer_credentials(&near).unwrap(), (user, std::process::id()));
        assert!(peer_credentials(std::fs::File::open("/dev/null").unwrap()).is_err(), "not a socket");
    }

    #[tokio::test]
    async fn a_watched_descriptor_reports_that_it_is_readable() {
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let watched = watch(Arc::new(far.into())).unwrap();
        near.write_all(b"x").unwrap();
        drop(watched.readable().await.unwrap());
    }
}
