//! The binary, through real sockets. Tests are named after the fault they cover.

#![allow(clippy::pedantic, clippy::unwrap_used, unreachable_pub, reason = "test code")]

mod admission;
mod config;
mod deploy;
mod explain;
mod fuzz_seeds;
mod health;
mod hello;
mod import;
mod interop;
mod lifecycle;
mod names;
mod observe;
mod page;
mod plan;
mod readme;
mod refusal;
mod relay;
mod reload;
mod routing;
mod sandbox;
mod support;
mod systemd;
mod upgrade;
mod upstream;
