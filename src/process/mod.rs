//! The process and what surrounds it: its successor, systemd, the sandbox, the watched file.

pub(crate) mod sandbox;
pub(crate) mod systemd;
pub(crate) mod upgrade;
pub(crate) mod watch;
