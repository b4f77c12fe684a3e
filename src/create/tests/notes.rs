//! Notes to the user.

use super::*;

#[test]
fn a_guest_with_more_memory_than_it_should_have_is_told_of() {
    let job = job("s1", &[]);
    let mut seen = seen(&job);
    let told = |seen: &CreateInput| {
        let mut notes = plan(&job, seen).unwrap().notes;
        notes.retain(|note| note.contains("mem-set"));
        notes
    };
    assert_eq!(told(&seen).len(), 0);
    seen.above_target = Some((131_072, 65_536));
    assert!(told(&seen)[0].contains("has 128 MiB of memory and should have 64 MiB"));
    assert!(told(&seen)[0].ends_with("xl mem-set web1 64m"));
}

#[test]
fn what_ends_with_the_host_is_told_once() {
    let told = |option: &str, volatile: &[&str]| {
        let job = job("s1", &[option]);
        let mut seen = seen(&job);
        let overlay = "/srv/web1-xvdb.after-s1.qcow2";
        let files = ["/srv/s1.xlsave", "/srv/a.qcow2", "/srv/b.img", overlay];
        let space = |file: &&str| Space {
            file: file.into(),
            device: 7,
            free: 1 << 40,
            volatile: volatile.contains(file),
        };
        seen.spaces = files.iter().map(space).collect();
        let mut notes = plan(&job, &seen).unwrap().notes;
        notes.retain(|note| note.contains("power cut"));
        notes
    };
    let none: [String; 0] = [];
    assert_eq!(told("xvdb,external", &[]), none);
    assert_eq!(
        told("xvdb,external", &["/srv/s1.xlsave", "/srv/b.img"]),
        [
            "/srv/s1.xlsave, /srv/b.img are in the host's memory (tmpfs): the snapshot is lost with a power cut or \
          a reboot of the host"
        ]
    );
    // A disk that is left out is not in the snapshot.
    assert_eq!(told("xvdb,none", &["/srv/b.img"]), none);
}
