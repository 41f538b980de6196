//! Text that operators write and read: addresses, durations and sizes, and what others have sent, made safe to show.

pub mod destination;
pub mod escape;
pub mod pasted;
pub mod units;

pub use self::destination::Destination;
