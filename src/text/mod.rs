//! Text that operators write and read: addresses, durations and sizes, and what others have sent, made safe to show.

pub(crate) mod destination;
pub(crate) mod escape;
pub(crate) mod input;
pub(crate) mod pasted;
pub(crate) mod units;

pub(crate) use self::destination::Destination;
