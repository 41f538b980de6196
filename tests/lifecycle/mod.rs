//! Start, change and stop of the process.

/// Clocks that jump.
mod clock;
/// Included files and lists of networks.
mod files;
/// Listeners whose address comes later.
mod freebind;
pub mod hand_over;
/// A new configuration.
mod reload;
/// What the process may still do.
mod sandbox;
/// Start and stop.
mod start_stop;
/// Notifications and socket activation.
mod systemd;
/// A new binary.
pub mod upgrade;
/// A new process that anyone starts.
mod upgrade_socket;
