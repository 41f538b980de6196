//! What is known of each connection: counted once, logged once, and the last rejections kept.

mod address;
mod counters;
mod histogram;
mod line_limit;
mod outcome;
mod recent;
mod record;

pub(crate) use self::counters::{Counters, Listener, Reloads, RouteCounters, UNROUTED};
pub(crate) use self::histogram::{Distribution, Histogram};
pub(crate) use self::line_limit::LineLimit;
pub(crate) use self::outcome::{ClosedBy, Outcome, Stage};
pub(crate) use self::recent::{RecentRejection, RecentRejections};
pub(crate) use self::record::{ConnectionRecord, LogFields, canonical, escape};
