//! The binary, through real sockets. Tests are named after the fault they cover.

#![allow(clippy::pedantic, clippy::unwrap_used, clippy::print_stderr, unreachable_pub, reason = "test code")]

mod abuse;
mod admission;
mod clock;
mod config;
mod deploy;
mod doctor;
mod explain;
mod faults;
mod fuzz_seeds;
mod health;
mod hello;
mod import;
mod import_faithful;
mod interop;
mod kubeconfig;
mod lifecycle;
mod links;
mod manual;
mod migrating;
mod names;
mod observe;
mod page;
mod plan;
mod proxy;
mod readme;
mod refusal;
mod relay;
mod reload;
mod routing;
mod sandbox;
mod scenarios;
mod schema;
mod soak;
mod support;
mod systemd;
mod upgrade;
mod upstream;
mod watchdog;
