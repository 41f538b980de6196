//! Start, change and stop of the process.

/// Clocks that jump.
mod clock;
/// Start and stop.
mod lifecycle;
/// A new configuration.
mod reload;
/// What the process may still do.
mod sandbox;
/// Notifications and socket activation.
mod systemd;
/// A new binary.
mod upgrade;
