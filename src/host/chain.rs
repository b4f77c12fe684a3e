//! Reading chains of images, without a tool that would follow whatever an image names.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::O_NONBLOCK;

use crate::disk::chain::{FileId, Link, MAX_LENGTH, names_unstated};
use crate::disk::qcow2::{Header, READ, READ_LIST};
use crate::domain::Format;
use crate::tool::check_path;

/// An image and those below it, top first.
///
/// # Errors
///
/// If one of them is not there, cannot be opened by anybody, is no file, or if its format is not stated
/// above it: nothing that is only named is opened, and no format is guessed.
pub fn walk(path: &Path, format: Format) -> Result<Vec<Link>, String> {
    check_path(path).map_err(|why| why.to_string())?;
    let mut chain: Vec<Link> = Vec::new();
    let mut next = Some((path.to_owned(), format));
    while let Some((path, format)) = next {
        let shown = path.display();
        let (id, start) = start(&path, format).map_err(|error| format!("{shown}: {error}"))?;
        if chain.iter().any(|link| link.id == id) {
            return Err(format!("{shown} is its own base"));
        }
        if chain.len() == MAX_LENGTH {
            return Err(format!("its backing chain is longer than {MAX_LENGTH} images"));
        }
        if names_unstated(format, &start) {
            return Err(format!(
                "{shown} is a {format} image with a backing file of no stated format"
            ));
        }
        let header = match format {
            Format::Qcow2 => Some(Header::parse(&start).map_err(|why| format!("{shown}: {why}"))?),
            _ => None,
        };
        let link = Link { path, id, format, header };
        if let Some(why) = link.unreadable() {
            return Err(why);
        }
        next = link.below()?;
        chain.push(link);
    }
    Ok(chain)
}

/// The size that the guest saw at an internal snapshot of an image that [`walk`] has found, in bytes.
pub fn snapshot_virtual_size(image: &Link, id: &str) -> Result<u64, String> {
    let header = image.header.as_ref().ok_or("it is not a qcow2 file")?;
    let list = || {
        let file = File::options().read(true).custom_flags(O_NONBLOCK).open(&image.path)?;
        let mut list = Vec::new();
        (&file).seek(SeekFrom::Start(header.snapshot_list))?;
        file.take(READ_LIST).read_to_end(&mut list)?;
        Ok(list)
    };
    let list = list().map_err(|error: io::Error| format!("{}: {error}", image.path.display()))?;
    header.snapshot_virtual_size(&list, id)
}

/// Which file or device it is, and its first bytes if what it rests on stands there.
fn start(path: &Path, format: Format) -> io::Result<(FileId, Vec<u8>)> {
    let meta = fs::metadata(path)?;
    let id = match meta.file_type() {
        kind if kind.is_file() => (meta.dev(), meta.ino()),
        kind if kind.is_block_device() => (meta.rdev(), 0),
        // A FIFO would be waited for, and opening some devices does something.
        _ => return Err(io::Error::other("it is neither a file nor a block device")),
    };
    let mut bytes = Vec::new();
    if !matches!(format, Format::Raw | Format::Vhd) {
        let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
        file.take(READ).read_to_end(&mut bytes)?;
    }
    Ok((id, bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::host::command;
    use crate::tool::qemu_img;
    use crate::tool::{Invocation, Tool};

    fn overlay(path: &Path, base: &Path, format: Format) {
        command::run(&qemu_img::create_overlay(path, base, format, 1 << 20)).unwrap();
    }

    #[test]
    fn a_chain_is_followed_by_any_spelling() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        File::create(path("base.img")).unwrap().set_len(1 << 20).unwrap();
        symlink(path("base.img"), path("link.img")).unwrap();
        overlay(&path("middle.qcow2"), &path("link.img"), Format::Raw);
        let spelled = format!("{}//middle.qcow2", directory.path().display());
        overlay(&path("top.qcow2"), Path::new(&spelled), Format::Qcow2);
        let chain = walk(&path("top.qcow2"), Format::Qcow2).unwrap();
        let ids: Vec<_> = chain.iter().map(|link| link.id).collect();
        let id = |name: &str| walk(&path(name), Format::Raw).unwrap()[0].id;
        assert_eq!(ids, ["top.qcow2", "middle.qcow2", "base.img"].map(id));
        assert_eq!(chain[2].header, None);

        overlay(&path("other.qcow2"), &path("self.qcow2"), Format::Qcow2);
        overlay(&path("self.qcow2"), &path("other.qcow2"), Format::Qcow2);
        assert!(walk(&path("self.qcow2"), Format::Qcow2).unwrap_err().contains("is its own base"));
        fs::remove_file(path("base.img")).unwrap();
        let why = walk(&path("top.qcow2"), Format::Qcow2).unwrap_err();
        assert!(why.contains("link.img") && why.contains("No such file"), "{why}");
    }

    #[test]
    fn what_qemu_img_makes_is_read_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let run = |args: &[&str]| {
            // For LUKS it measures the processor, which fails now and then on a busy machine.
            let call = Invocation::new(Tool::QemuImg, args);
            assert!((0..10).any(|_| command::run(&call).is_ok()), "{args:?}");
        };
        let of = |name: &str| path(name).display().to_string();
        run(&["create", "-q", "-f", "qcow2", &of("a"), "1M"]);
        run(&["bitmap", "--add", &of("a"), "b0"]);
        run(&["snapshot", "-c", "s1", &of("a")]);
        let header = walk(&path("a"), Format::Qcow2).unwrap().remove(0).header.unwrap();
        assert_eq!((header.bitmaps, header.snapshots, header.size), (1, 1, 1 << 20));
        run(&["bitmap", "--remove", &of("a"), "b0"]);
        run(&["resize", "-q", "-f", "qcow2", &of("a"), "3M"]);
        run(&["snapshot", "-c", "s2", &of("a")]);
        let image = walk(&path("a"), Format::Qcow2).unwrap().remove(0);
        assert_eq!(image.header.as_ref().unwrap().size, 3 << 20);
        assert_eq!(snapshot_virtual_size(&image, "1"), Ok(1 << 20));
        assert_eq!(snapshot_virtual_size(&image, "2"), Ok(3 << 20));
        assert!(snapshot_virtual_size(&image, "3").is_err());

        run(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &format!("data_file={}", of("d")),
            &of("b"),
            "1M",
        ]);
        assert!(walk(&path("b"), Format::Qcow2).unwrap_err().contains("data_file"));
        let secret = "secret,id=s,data=x";
        run(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "--object",
            secret,
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            &of("e"),
            "1M",
        ]);
        assert!(walk(&path("e"), Format::Qcow2).unwrap_err().contains("is encrypted"));
        // A name that only the header tells is not looked at.
        run(&[
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            "nbd://127.0.0.1:1/x",
            "-F",
            "raw",
            &of("n"),
            "1M",
        ]);
        assert!(walk(&path("n"), Format::Qcow2).unwrap_err().contains("no path of a file"));
        run(&["create", "-q", "-f", "qcow", &of("q"), "1M"]);
        assert_eq!(walk(&path("q"), Format::Qcow).unwrap().len(), 1);
        assert!(walk(&path("q"), Format::Qcow2).is_err());
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), Path::new("/dev/null"), directory.path()] {
            let why = walk(path, Format::Raw).unwrap_err();
            assert!(why.contains("neither a file nor a block device"), "{why}");
        }
    }
}
