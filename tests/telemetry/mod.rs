//! What operators see of a running router.

/// Log lines and metrics.
mod observe;
/// The status page, in a browser.
mod page;
