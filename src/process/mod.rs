//! The process and its environment: upgrades, systemd, the sandbox, the files of the configuration.

pub(crate) mod channel;
pub(crate) mod inputs;
pub(crate) mod sandbox;
pub(crate) mod systemd;
pub(crate) mod unix_socket;
pub(crate) mod upgrade;
pub(crate) mod watch;
