//! The process and its environment: upgrades, systemd, the sandbox, the watched file.

pub(crate) mod channel;
pub(crate) mod sandbox;
pub(crate) mod systemd;
pub(crate) mod unix_socket;
pub(crate) mod upgrade;
pub(crate) mod watch;
