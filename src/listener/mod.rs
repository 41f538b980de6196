//! Sockets that listen, and the loop that accepts from one. Knows nothing of TLS or routes.

pub(crate) mod accept;
