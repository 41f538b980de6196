//! The record of each connection, which is counted and logged once, and the most recent rejections.

mod address;
mod counters;
mod line_limit;
mod outcome;
mod recent;
mod record;

pub(crate) use self::counters::{Counters, ListenerTelemetry, Reloads, RouteCounters, UNROUTED};
pub(crate) use self::line_limit::LineLimit;
pub(crate) use self::outcome::{ClosedBy, Outcome, Stage};
pub(crate) use self::recent::{RecentRejection, RecentRejections};
pub(crate) use self::record::{ConnectionRecord, LogFields, canonical, escape};
