//! docs
pub mod client_hello;
pub mod name;
#[cfg(feature = "router")]
pub mod relay;
pub mod route;
#[cfg(feature = "router")]
mod sys;
