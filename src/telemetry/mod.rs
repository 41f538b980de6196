//! What is known of each connection: counted once, logged once, and the last rejections kept.

mod address;
mod counters;
mod line_limit;
mod outcome;
mod recent;
mod record;

pub use self::counters::{Counters, Listener, Reloads, RouteCounters, UNROUTED};
pub use self::line_limit::RefusalLog;
pub use self::outcome::{ClosedBy, Outcome, Stage};
pub use self::recent::{Refusals, Refused};
pub use self::record::{Account, Facts, canonical, escape};
