//! Routes from Kubernetes: Gateway API for TLS passthrough, and Ingress objects with ingress-nginx's `ssl-passthrough`.
//!
//! Objects are decoded one by one ([`api`]) and collected in a [`snapshot`]. [`translate`] turns that into a [`plan`]:
//! what to listen on, the routes, the endpoints, and what to say about each object; [`status`] turns the latter into what
//! is written back. All of that is pure; [`offline`] does it with files.
//!
//! [`cluster`] watches the objects and writes what is to be reported, and [`drive`] applies each plan to the server.

pub(crate) mod api;
pub(crate) mod cluster;
pub(crate) mod configuration;
pub(crate) mod drive;
pub(crate) mod offline;
pub(crate) mod plan;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod translate;
