use std::os::unix::fs::{MetadataExt, symlink};

use super::*;
use crate::disk::kind::ProofSlot;
use crate::memory::header::{encode, encode_plain, record_space};
use crate::memory::stream::pages;
use crate::record::Record;
use crate::support::record::sample;
use crate::support::streams::{HVM, PV, guest_stream, pv_stream, rounds};

const CONFIG: &str = r#"{"c_info":{"name":"web1"}}"#;

/// As versions before wrote it.
fn old_image(path: &Path, stream: &[u8]) -> Record {
    let mut record = sample();
    let space = record_space(&record);
    let head = encode(CONFIG, &record, space).unwrap().len();
    record.image_size = (head + stream.len()) as u64;
    let bytes = [encode(CONFIG, &record, space).unwrap(), stream.to_vec()].concat();
    fs::write(path, bytes).unwrap();
    record
}

#[test]
fn an_image_of_before_is_written_anew_and_says_the_same() {
    for guest in [PV, HVM] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s1.xlsave");
        let old = old_image(&path, &guest_stream(guest, &rounds(guest)));
        fs::write(new_path(&path), "of a run that was killed").unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let mut source = Source::open(&path).unwrap();
        let done = compact(&path, &mut source, None).unwrap();
        assert!(done.after.on_disk < done.before.on_disk, "{done:?}");
        let mut source = Source::open(&path).unwrap();
        source.verify().unwrap();
        let now = &source.image.record;
        assert_eq!(*now, Record { image_size: now.image_size, ..old });
        assert_eq!(source.image.config, CONFIG);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let (start, length) = (source.image.stream_offset, source.image.stream_len);
        pages(&mut source.file, start, start + length, &mut |_, at| {
            assert_eq!(at % 4096, 0);
            Ok(())
        })
        .unwrap();
        // Once more, nothing is left to do.
        let again = compact(&path, &mut source, None).unwrap();
        assert_eq!(again.before, again.after);
    }
}

#[test]
fn a_copy_gets_its_holes_back_and_says_the_same() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let [path, copy] = ["s1.xlsave", "copy.xlsave"].map(|name| directory.path().join(name));
    old_image(&path, &guest_stream(PV, &rounds(PV)));
    compact(&path, &mut Source::open(&path).unwrap(), None).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&copy, &bytes).unwrap();
    let before = fs::metadata(&copy).unwrap();
    let mut source = Source::open(&copy).unwrap();
    let done = compact(&copy, &mut source, Some(&path)).unwrap();
    assert!(done.after.on_disk < done.before.on_disk, "{done:?}");
    assert_eq!(fs::read(&copy).unwrap(), bytes);
    let after = fs::metadata(&copy).unwrap();
    assert_eq!((after.ino(), after.mtime_nsec()), (before.ino(), before.mtime_nsec()));
    assert!(after.blocks() <= fs::metadata(&path).unwrap().blocks());
}

#[test]
fn what_cannot_be_written_anew_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s1.xlsave");
    old_image(&path, &pv_stream());
    let bytes = fs::read(&path).unwrap();
    let mut source = Source::open(&path).unwrap();
    let error = compact(&path, &mut source, None).unwrap_err();
    assert!(matches!(error, NotCompact::Foreign), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    // Another file has its name by now.
    old_image(&path, &guest_stream(PV, &rounds(PV)));
    let mut source = Source::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, encode_plain(CONFIG).unwrap()).unwrap();
    let error = compact(&path, &mut source, None).unwrap_err();
    assert!(matches!(error, NotCompact::Changed), "{error}");
    assert_eq!(fs::read(&path).unwrap(), encode_plain(CONFIG).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_record_that_a_delete_has_changed_meanwhile_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s1.xlsave");
    let old = old_image(&path, &guest_stream(PV, &rounds(PV)));
    let mut source = Source::open(&path).unwrap();
    let mut record = old.clone();
    let ProofSlot::Frozen { proof: Some(proof), .. } = record.disks[1].snapshot.kind_mut().proof()
    else {
        panic!()
    };
    proof.file_size += 1;
    rewrite::replace(&path, &record).unwrap();
    let error = compact(&path, &mut source, None).unwrap_err();
    assert!(matches!(error, NotCompact::Changed), "{error}");
    assert_eq!(rewrite::read(&path).unwrap(), record);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_link_leads_to_its_file_and_a_file_with_several_names_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let directory = fs::canonicalize(directory.path()).unwrap();
    let [path, link, name] = ["s1.xlsave", "link", "name"].map(|name| directory.join(name));
    old_image(&path, &guest_stream(PV, &rounds(PV)));
    let bytes = fs::read(&path).unwrap();
    symlink("s1.xlsave", &link).unwrap();
    assert_eq!(place(&link).unwrap(), path);
    let error = compact(&link, &mut Source::open(&link).unwrap(), None).unwrap_err();
    assert!(matches!(error, NotCompact::Link), "{error}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    fs::hard_link(&path, &name).unwrap();
    for path in [&path, &name, &link] {
        let error = place(path).unwrap_err();
        assert!(matches!(error, NotCompact::Names(2)), "{error}");
    }
    let error = compact(&path, &mut Source::open(&path).unwrap(), None).unwrap_err();
    assert!(error.to_string().contains("2 names"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 3);
    fs::remove_file(&name).unwrap();
    compact(&path, &mut Source::open(&path).unwrap(), None).unwrap();
    Source::open(&link).unwrap().verify().unwrap();
}

#[test]
fn a_damaged_image_is_not_given_new_checksums() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s1.xlsave");
    old_image(&path, &guest_stream(PV, &rounds(PV)));
    compact(&path, &mut Source::open(&path).unwrap(), None).unwrap();
    let mut source = Source::open(&path).unwrap();
    let (start, length) = (source.image.stream_offset, source.image.stream_len);
    let mut last = 0;
    pages(&mut source.file, start, start + length, &mut |_, at| {
        last = at;
        Ok(())
    })
    .unwrap();
    let file = files::open_no_link(&path).unwrap();
    file.write_all_at(b"x", last + 99).unwrap();
    let error = Source::open(&path).unwrap().verify().unwrap_err();
    assert!(error.chain().join(": ").contains("Page 0x11 of the guest's memory"), "{error:?}");
    assert_eq!(error.exit_code(), 3);
}
