//! docs
#[cfg(feature = "router")]
pub mod accept;
#[cfg(feature = "router")]
pub mod account;
#[cfg(feature = "router")]
pub mod admin;
pub mod client_hello;
#[cfg(feature = "router")]
pub mod config;
#[cfg(feature = "router")]
pub mod connection;
#[cfg(feature = "router")]
pub mod hello;
pub mod name;
#[cfg(feature = "router")]
pub mod refusal;
#[cfg(feature = "router")]
pub mod relay;
pub mod route;
#[cfg(feature = "router")]
pub mod server;
#[cfg(feature = "router")]
mod sys;
#[cfg(feature = "router")]
pub mod tcp;
#[cfg(feature = "router")]
pub mod upstream;
