//! The boot loader of a guest (pygrub), which reads the guest's first disk in dom0, at every start. Pure.

use crate::create::CreateInput;
use crate::disk::{DiskCreate, Served};
use crate::domain::Format;
use crate::error::{Error, Result};

/// Refuses an overlay on the disk that the boot loader reads if the guest could not start again with it.
/// Otherwise returns a note.
///
/// The loader reads a raw image directly; libxl attaches any other image to dom0 with dom0's own QEMU
/// (libxl_disk.c, `libxl__device_disk_local_initiate_attach`). It takes the first disk of the configuration
/// (libxl_bootloader.c).
pub fn check(domain: &str, seen: &CreateInput, disks: &[DiskCreate]) -> Result<Option<String>> {
    let Some(loader) = seen.config.boot_loader() else { return Ok(None) };
    let (Some(before), Some(after)) = (seen.disks.first(), disks.first()) else { return Ok(None) };
    let was_raw = before.disk.format == Some(Format::Raw);
    let needs_qemu = matches!(after.switch, Some((_, format)) if format != Format::Raw);
    if !was_raw || !needs_qemu {
        return Ok(None);
    }
    let vdev = &before.disk.vdev;
    if seen.dom0_qemu {
        return Ok(Some(format!(
            "{loader} will read {vdev} by dom0's own QEMU (xencommons starts it): without that, {domain} does \
             not start again"
        )));
    }
    let cloned = before.served == Some(Served::Blkback) && before.clone_trouble.is_none();
    let instead =
        if cloned { format!("copy it instead: --disk {vdev},reflink; or ") } else { String::new() };
    Err(Error::refused(format!("{domain} could not start again with an overlay for {vdev}"))
        .because(format!(
            "its boot loader, {loader}, reads that disk in dom0, and dom0 has no QEMU of its own that could \
             open an overlay"
        ))
        .hint(format!("{instead}start dom0's QEMU (the service xencommons, or xen-qemu-dom0-disk-backend)")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::disks;
    use crate::create::tests::{CONFIG, job, seen};
    use crate::domain::DomainConfig;

    /// web1 with pygrub, whose first disk is raw, on a loop device or not.
    fn with_loader(served: Served) -> CreateInput {
        let config = CONFIG.replace("\"b_info\": {", "\"b_info\": {\"bootloader\": \"pygrub\", ");
        let mut seen = seen(&job("s1", &[]));
        seen.config = DomainConfig::parse(&config).unwrap();
        seen.disks.swap(0, 1);
        if served == Served::Blkback {
            seen.disks[0].node = None;
        }
        seen.disks[0].served = Some(served);
        seen
    }

    #[test]
    fn an_overlay_that_no_loader_could_read_is_refused() {
        let told = |seen: &CreateInput, options: &[&str]| {
            let job = job("s1", options);
            let disks = disks(&job, seen)?;
            check("web1", seen, &disks)
        };
        for served in [Served::Qemu, Served::Blkback] {
            let mut seen = with_loader(served.clone());
            let note = told(&seen, &[]).unwrap().unwrap();
            assert!(note.contains("pygrub will read xvdb by dom0's own QEMU"), "{note}");
            seen.dom0_qemu = false;
            let error = told(&seen, &[]).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            let hint = error.hint.unwrap();
            assert_eq!(hint.contains("--disk xvdb,reflink"), served == Served::Blkback, "{hint}");
            assert!(hint.contains("start dom0's QEMU"), "{hint}");
            // Another kind of snapshot, or left out.
            assert_eq!(told(&seen, &["xvdb,reflink"]).unwrap(), None);
            assert_eq!(told(&seen, &["xvdb,none"]).unwrap(), None);
        }
        // The loader reads only the first disk, and a qcow2 disk needed that QEMU before.
        let mut seen = with_loader(Served::Qemu);
        seen.dom0_qemu = false;
        seen.disks.swap(0, 1);
        assert_eq!(told(&seen, &["xvda,external"]).unwrap(), None);
        let mut without = super::super::tests::seen(&job("s1", &[]));
        without.disks.swap(0, 1);
        assert_eq!(told(&without, &[]).unwrap(), None);
    }
}
