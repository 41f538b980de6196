//! The process and what surrounds it: its successor, systemd, the sandbox, the watched file.

pub mod sandbox;
pub mod systemd;
pub mod upgrade;
pub mod watch;
