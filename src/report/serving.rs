//! What is said once a disk is served.

use std::fmt;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use serde::Serialize;
use uuid::Uuid;

use super::Rows;

/// What is served, and where. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Serving {
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The name of its domain.
    pub domain: String,
    /// The disk.
    pub vdev: String,
    /// How it was snapshotted.
    pub snapshot: &'static str,
    /// The file or device that is read.
    pub image: PathBuf,
    /// The size of the disk, in bytes.
    pub size: u64,
    pub socket: PathBuf,
    /// The name of the export.
    pub export: String,
    /// What NBD clients take.
    pub uri: String,
}

impl Serving {
    /// The URI of an export (the NBD protocol, doc/uri.md).
    pub fn uri(socket: &str, export: &str) -> String {
        format!("nbd+unix:///{}?socket={}", encoded(export), encoded(socket))
    }
}

/// Each byte that a URI does not take as it is, as `%XX`.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

impl fmt::Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Serving { name, domain, vdev, .. } = self;
        writeln!(f, "Serving {vdev} of snapshot {name} of {domain}, read-only")?;
        let mut rows = Rows::default();
        rows.add("image", format!("{} ({})", self.image.display(), self.snapshot));
        rows.add("size", BinaryBytes(self.size).to_string());
        rows.add("at", &self.uri);
        rows.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_has_nothing_that_ends_it() {
        assert_eq!(Serving::uri("/run/web1.sock", ""), "nbd+unix:///?socket=/run/web1.sock");
        assert_eq!(
            Serving::uri("/run/a b&c?d#\u{e4}.sock", "x/y z"),
            "nbd+unix:///x/y%20z?socket=/run/a%20b%26c%3Fd%23%C3%A4.sock"
        );
    }
}
