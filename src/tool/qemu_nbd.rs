//! qemu-nbd(8): arguments. Pure.
//!
//! The format is always stated, and paths are absolute, as with qemu-img. We pass an open socket (systemd's
//! socket activation, which qemu-nbd has since 2.9): given a path, qemu-nbd would remove whatever is there.

use crate::tool::qemu_img::{Whole, snapshot_option, vhd_opts};
use crate::tool::{Invocation, Tool};

/// How one disk is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export<'a> {
    /// The name that clients ask for; empty for the default export.
    pub name: &'a str,
    /// For people who list the exports.
    pub description: &'a str,
    /// Whether to end when the last client disconnects.
    pub once: bool,
}

/// Serves a disk read-only, to any number of clients: nbdcopy opens several connections. `-A` tells them which parts of
/// an overlay are its own (`qemu:allocation-depth`).
pub fn serve(from: &Whole, export: Export<'_>) -> Invocation {
    let Export { name, description, once } = export;
    let call = Invocation::new(Tool::QemuNbd, ["-r", "-A", "-e", "0", "-x", name])
        .args(["-D", description])
        .args((!once).then_some("-t"));
    match from {
        Whole::Image { path, format } => call.args(["-f", format.qemu()]).arg(path),
        Whole::Inside { path, id } => {
            // The guest, or a new snapshot, may write to the file meanwhile, and never to this snapshot. qemu-nbd
            // has no -U.
            call.arg("-l").arg(snapshot_option(id)).arg("--image-opts").arg(format!(
                "driver=qcow2,force-share=on,file.driver=file,file.filename={}",
                path.to_string_lossy().replace(',', ",,")
            ))
        }
        Whole::TapVhd { path } => call.arg("--image-opts").arg(vhd_opts(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Format;

    const EXPORT: Export<'static> = Export { name: "", description: "web1/s1 xvda", once: false };

    #[test]
    fn formats_are_stated() {
        let raw = Whole::Image { path: "/srv/a, b.img".into(), format: Format::Raw };
        assert_eq!(
            serve(&raw, EXPORT).to_string(),
            "qemu-nbd -r -A -e 0 -x '' -D 'web1/s1 xvda' -t -f raw '/srv/a, b.img'"
        );
        let once = serve(&raw, Export { name: "disk", once: true, ..EXPORT }).to_string();
        assert!(once.contains("-x disk") && !once.contains(" -t "), "{once}");
        let vhd = serve(&Whole::TapVhd { path: "/srv/c.vhd".into() }, EXPORT).to_string();
        assert!(vhd.contains("driver=vpc,") && vhd.contains("=current_size,"), "{vhd}");
    }

    #[test]
    fn a_snapshot_inside_is_read_beside_its_writer() {
        let inside = Whole::Inside { path: "/srv/a,b.qcow2".into(), id: "1".into() };
        let call = serve(&inside, EXPORT).to_string();
        assert!(call.contains("snapshot.id=1") && call.contains("--image-opts"), "{call}");
        let shared = "driver=qcow2,force-share=on,file.driver=file,file.filename=/srv/a,,b.qcow2";
        assert!(call.contains(shared), "{call}");
    }
}
