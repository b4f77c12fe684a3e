//! What several unit tests of the library start from.

pub(crate) mod disks;
pub(crate) mod record;
pub(crate) mod streams;
pub(crate) mod volumes;
