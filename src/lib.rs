//! docs
pub mod client_hello;
pub mod name;
pub mod route;
