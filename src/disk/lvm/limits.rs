//! How much of a pool or a group a snapshot may take.

use crate::disk::mib;
use crate::tool::volumes::Volume;

/// A thin pool that is fuller than this, in hundredths of a percent, gets no new snapshot: later
/// writes of the guest need new space, and a full pool fails every guest on it.
pub(super) const POOL_LIMIT: u64 = 9_000;

/// That of a full pool, in the same unit.
pub(super) const FULL: u64 = 10_000;

/// `most` is how full a pool may be. A revert may be what makes room in one that is full: what it takes is metadata.
pub(super) fn check_pool(volumes: &[Volume], volume: &Volume, most: u64) -> Result<(), String> {
    let pool = volumes
        .iter()
        .find(|pool| pool.group == volume.group && pool.name == volume.pool)
        .ok_or_else(|| format!("its pool {} is not known", volume.pool))?;
    if let Some(why) = pool.sick() {
        return Err(why);
    }
    let own = pool.threshold.map_or(most, |percent| percent.saturating_mul(100));
    let limit = own.min(most);
    let by_whom = if own < most { " (thin_pool_autoextend_threshold)" } else { "" };
    for (what, used) in [("data", pool.used), ("metadata", pool.metadata_used)] {
        let used = used.ok_or_else(|| format!("its pool {} is not active", pool.path()))?;
        if used > limit {
            return Err(format!(
                "the {what} of its thin pool {} is {} % full, more than {} %{by_whom}: extend it first",
                pool.path(),
                used / 100,
                limit / 100
            ));
        }
        let room = pool.metadata_size.filter(|_| what == "metadata").map(metadata_limit);
        if room.is_some_and(|limit| used >= limit) {
            return Err(format!(
                "the metadata of its thin pool {0} is {1} % full, and LVM creates nothing in it before it has 4 MiB \
                 or a quarter free again: lvextend --poolmetadatasize +4M {0}",
                pool.path(),
                used / 100
            ));
        }
    }
    Ok(())
}

/// From where on LVM creates nothing in a pool with metadata of this size, in hundredths of a percent (lvm2,
/// thin_manip.c, `pool_metadata_min_threshold`).
fn metadata_limit(size: u64) -> u64 {
    const FREE: u64 = 4 << 20;
    const ALL: u64 = 10_000;
    ALL - (FREE * ALL / size.max(1)).min(ALL / 4)
}

/// Why the free space is less than vgs tells, if it is.
pub(super) fn held_back(volume: &Volume) -> String {
    match volume.held_back {
        0 => String::new(),
        held => format!(
            ", besides {} on physical volumes from which nothing may be allocated (pvchange --allocatable y)",
            mib(held)
        ),
    }
}
