//! What the socket crates lack. The only place where `unsafe` may stand.

use std::ffi::c_int;
use std::os::fd::AsFd;

use rustix::io;
use rustix::ioctl::{Getter, Opcode, ioctl};

/// `SIOCOUTQ` (tcp(7)), the same request as the terminals' `TIOCOUTQ`.
const SIOCOUTQ: Opcode = 0x5411;

/// How many bytes written to a TCP socket its peer has not acknowledged yet.
pub(crate) fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    // SAFETY: SIOCOUTQ takes no input and stores one `int`, which is what this getter makes room for; on a
    // descriptor that is no socket it fails or stores the same type (TIOCOUTQ).
    #[expect(unsafe_code, reason = "neither socket2 nor rustix offers SIOCOUTQ or TCP_INFO")]
    let bytes = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new())? };
    Ok(usize::try_from(bytes).unwrap_or(0))
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
        assert!(unacknowledged(std::fs::File::open("/dev/null").unwrap()).is_err(), "no socket, no answer");
    }
}
