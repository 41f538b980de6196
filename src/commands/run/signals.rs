//! Signals. A request that arrives while another is being handled is remembered.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, info, warn};

use crate::commands::runtime;

/// What a signal requests.
#[derive(Clone, Copy)]
pub(super) enum SignalRequest {
    Stop(&'static str),
    Reload,
    Upgrade,
}

/// What is being done while a signal arrives.
#[derive(Clone, Copy)]
pub(super) enum Busy {
    Starting,
    Reloading,
    Upgrading,
    Draining,
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    user1: Signal,
    user2: Signal,
    /// Requested while something else was being done.
    reload: bool,
    upgrade: bool,
}

impl Signals {
    /// Installs the handlers. This does not need a thread: a temporary runtime registers them, and signals that arrive
    /// before the next runtime exists are delivered to that.
    pub(super) fn catch() -> anyhow::Result<Self> {
        runtime::run(async { Self::new() })?
    }

    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            reload: false,
            upgrade: false,
        })
    }

    pub(super) async fn next(&mut self) -> SignalRequest {
        if self.take_reload() {
            return SignalRequest::Reload;
        }
        if self.take_upgrade() {
            return SignalRequest::Upgrade;
        }
        self.receive().await
    }

    async fn receive(&mut self) -> SignalRequest {
        loop {
            return tokio::select! {
                _ = self.terminate.recv() => SignalRequest::Stop("SIGTERM"),
                _ = self.interrupt.recv() => SignalRequest::Stop("SIGINT"),
                _ = self.quit.recv() => SignalRequest::Stop("SIGQUIT"),
                _ = self.hang_up.recv() => SignalRequest::Reload,
                _ = self.user2.recv() => SignalRequest::Upgrade,
                // Its default action would end the process, and it has a meaning in other proxies.
                _ = self.user1.recv() => {
                    debug!("SIGUSR1 ignored");
                    continue;
                }
            };
        }
    }

    /// Waits for a signal to stop, and remembers other requests.
    pub(super) async fn stop(&mut self, busy: Busy) -> &'static str {
        loop {
            match (self.receive().await, busy) {
                (SignalRequest::Stop(signal), _) => return signal,
                (_, Busy::Draining) => warn!("signal ignored: this process is draining"),
                (SignalRequest::Upgrade, Busy::Upgrading) => warn!("SIGUSR2 ignored: an upgrade is in progress"),
                (SignalRequest::Reload, Busy::Upgrading) => {
                    info!("reload postponed until the upgrade has succeeded or failed");
                    self.reload = true;
                }
                (SignalRequest::Reload, Busy::Starting | Busy::Reloading) => self.reload = true,
                (SignalRequest::Upgrade, Busy::Starting | Busy::Reloading) => self.upgrade = true,
            }
        }
    }

    /// Whether a reload was requested meanwhile.
    pub(super) fn take_reload(&mut self) -> bool {
        std::mem::take(&mut self.reload)
    }

    /// Whether an upgrade was requested meanwhile.
    fn take_upgrade(&mut self) -> bool {
        std::mem::take(&mut self.upgrade)
    }
}
