//! Signals: what they ask for, and what is remembered while something else is under way.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, info, warn};

use crate::commands::runtime;

/// What a signal asks for.
#[derive(Clone, Copy)]
pub(super) enum Asked {
    Stop(&'static str),
    Reload,
    Upgrade,
}

/// What is under way while a signal comes.
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
    /// Asked for while something else was under way.
    reload: bool,
    upgrade: bool,
}

impl Signals {
    /// From here on none of them ends the process. Without a thread: those of a runtime of its own are not needed any more
    /// once the kernel knows the handlers, and the signals that come until there is another runtime reach that.
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

    pub(super) async fn next(&mut self) -> Asked {
        if self.forget_reload() {
            return Asked::Reload;
        }
        if self.forget_upgrade() {
            return Asked::Upgrade;
        }
        self.receive().await
    }

    async fn receive(&mut self) -> Asked {
        loop {
            return tokio::select! {
                _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
                _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
                _ = self.quit.recv() => Asked::Stop("SIGQUIT"),
                _ = self.hang_up.recv() => Asked::Reload,
                _ = self.user2.recv() => Asked::Upgrade,
                // It would end the process, and means something to other proxies.
                _ = self.user1.recv() => {
                    debug!("SIGUSR1 means nothing here");
                    continue;
                }
            };
        }
    }

    /// Waits for a signal to stop, and remembers what else was asked for.
    pub(super) async fn stop(&mut self, busy: Busy) -> &'static str {
        loop {
            match (self.receive().await, busy) {
                (Asked::Stop(signal), _) => return signal,
                (_, Busy::Draining) => warn!("this process only drains; the signal is ignored"),
                (Asked::Upgrade, Busy::Upgrading) => warn!("an upgrade is under way; another one is ignored"),
                (Asked::Reload, Busy::Upgrading) => {
                    info!("the reload waits until the upgrade is decided");
                    self.reload = true;
                }
                (Asked::Reload, Busy::Starting | Busy::Reloading) => self.reload = true,
                (Asked::Upgrade, Busy::Starting | Busy::Reloading) => self.upgrade = true,
            }
        }
    }

    /// Whether a reload was asked for in the meantime.
    pub(super) fn forget_reload(&mut self) -> bool {
        std::mem::take(&mut self.reload)
    }

    /// Whether an upgrade was asked for in the meantime.
    fn forget_upgrade(&mut self) -> bool {
        std::mem::take(&mut self.upgrade)
    }
}
