//! The last round of a live save.

use std::time::Duration;

use crate::host::libxl::Progress;

/// The size of a page in bytes, in which libxl counts.
pub(super) const PAGE: u64 = 4096;

/// The last round of a save.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The rounds before it, in which the guest ran.
    pub(super) before: u32,
    /// In bytes.
    size: u64,
}

impl Round {
    pub(super) fn note(&mut self, progress: &Progress<'_>) {
        if progress.total > 0 {
            self.before = progress.iteration().unwrap_or_default();
            self.size = progress.total.saturating_mul(PAGE);
        }
    }

    pub(super) fn of_a_busy_guest(&self, pause: Duration) -> String {
        format!(
            "note: the guest writes to its memory about as fast as that is saved: after {} rounds, {} MiB \
             were left to save in the pause of {:.1} s; with --max-pause SECONDS, create \
             gives up instead",
            self.before,
            self.size >> 20,
            pause.as_secs_f64()
        )
    }
}
