//! What systemd is told, and the sockets that it passes on. Without systemd nothing happens here.

use std::io;

use listenfd::ListenFd;
use sd_notify::{NotifyState, notify, watchdog_enabled};
use socket2::SockRef;
use tokio::time::interval;
use tracing::debug;

use crate::server::Inherited;

/// What this process is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It serves, and is the main process of the unit: after an upgrade, too.
    Serving,
    /// It takes a new configuration.
    Reloading,
    /// It ends.
    Stopping,
}

/// Tells systemd.
pub fn tell(phase: Phase) {
    let told = match phase {
        Phase::Serving => notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]),
        Phase::Reloading => {
            // Type=notify-reload wants the time, too.
            let now = NotifyState::monotonic_usec_now();
            now.and_then(|now| notify(&[NotifyState::Reloading, now]))
        }
        Phase::Stopping => notify(&[NotifyState::Stopping]),
    };
    if let Err(reason) = told {
        debug!(%reason, "cannot tell systemd");
    }
}

/// Tells systemd that we are alive, twice as often as it asks for (`WatchdogSec=`), for as long as the runtime works.
pub fn keep_telling() {
    let Some(within) = watchdog_enabled() else { return };
    tokio::spawn(async move {
        let mut turn = interval(within / 2);
        loop {
            turn.tick().await;
            let _ = notify(&[NotifyState::Watchdog]);
        }
    });
}

/// The sockets of a socket unit (`LISTEN_FDS`).
pub fn sockets() -> io::Result<Vec<Inherited>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..passed.len() {
        if let Some(socket) = passed.take_tcp_listener(number)? {
            // Nobody else is to have it.
            SockRef::from(&socket).set_cloexec(true)?;
            sockets.push(Inherited { address: socket.local_addr()?, socket });
        }
    }
    Ok(sockets)
}
