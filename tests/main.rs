//! The binary, through real sockets. Tests are named after the fault they cover.

#![allow(clippy::pedantic, clippy::unwrap_used, clippy::print_stderr, unreachable_pub, reason = "test code")]

mod cli;
mod control;
#[cfg(feature = "gateway")]
mod gateway;
mod harness;
mod hello;
mod hostile;
mod lifecycle;
mod model;
mod packaging;
mod pool;
mod relay;
mod route;
mod support;
mod telemetry;
