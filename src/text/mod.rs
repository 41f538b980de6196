//! Text that operators write and read: endpoints, durations, sizes, input files, and escaping of untrusted text.

pub(crate) mod destination;
pub(crate) mod escape;
pub(crate) mod glob;
pub(crate) mod input;
pub(crate) mod pasted;
pub(crate) mod units;

pub(crate) use self::destination::Destination;
