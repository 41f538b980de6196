//! What operators see of a running router.

/// Which route a name has.
mod explain;
/// Log lines and metrics.
mod observe;
/// The status page, in a browser.
mod page;
/// Who gets a place at the admin listener.
mod places;
/// Formats and sizes of metrics and status.
mod scrape;
