//! The commands, and the configuration that they read.

/// What is refused, with which message.
mod config;
/// Every step from client to API server.
mod doctor;
/// Which route a client gets, and why.
mod explain;
/// Configurations of several files.
mod files;
/// Configurations of HAProxy and nginx.
mod import;
/// Imports, compared with HAProxy and nginx themselves.
mod import_faithful;
/// Kubeconfigs, and kubectl with them.
mod kubeconfig;
/// Manual page and completions.
mod manual;
/// The migration guide, step by step.
mod migrating;
/// What a reload would change.
mod plan;
/// The defaults and ranges of docs/configuration.md.
mod reference;
/// The JSON Schema says the same.
pub mod schema;
