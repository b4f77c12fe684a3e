//! Fixed cases. `host/cfg/tests.rs` compares with libxlutil at random.

use super::*;

fn qcow2(vdev: &str) -> Change {
    Change { vdev: vdev.into(), target: "/n".into(), format: "qcow2".into() }
}

fn specs(text: &str) -> Vec<String> {
    disk_entries(text.as_bytes()).unwrap().into_iter().map(|entry| entry.spec).collect()
}

#[test]
fn the_disks_in_force_are_found() {
    let table: [(&str, &[&str]); 19] = [
        ("", &[]),
        ("name='disk'\n", &[]),
        ("disk=[]", &[]),
        ("disk=[\n]\n", &[]),
        ("disk = [ 'a', \"b\" ]", &["a", "b"]),
        ("disk\t=\t[\t'a',\t]\n", &["a"]),
        ("disk = [ # 'x',\n'a' # it's\n, # ]\n 'b',\n# 'c'\n]\n", &["a", "b"]),
        ("# disk = ['x']\ndisk = ['a']\n", &["a"]),
        // The last assignment counts, also one with fewer disks.
        ("disk=['a','b'];disk=['c']", &["c"]),
        ("disk=['a']\ndisk=[]\n", &[]),
        // "+=" adds, also to nothing.
        ("disk=['a']\ndisk+=['b']; disk += [ 'c', ]", &["a", "b", "c"]),
        ("disk+=['a']", &["a"]),
        ("disk='no list';disk=['a']", &["a"]),
        // Only this name, and no other list's entries.
        ("disk.x=['x']\ndisk2=['y']\nvnuma=[['a','b'],['c',1,],]\ndisk=['a']", &["a"]),
        ("name = 'disk = [\"x\"]'\ndisk=['a']", &["a"]),
        ("memory = 0x10;vcpus=2\n\n;;disk=['a'];", &["a"]),
        // Escapes, and quotes and '#' in the other quotes.
        (r##"disk=['a\'b"c\\\"#', "a'b\"c\\ \t"]"##, &["a'b\"c\\\"#", "a'b\"c\\ \t"]),
        (r"disk=['\a\b\f\n\r\v']", &["\x07\x08\x0c\n\r\x0b"]),
        ("# ä\r\ndisk=['/srv/ä\r\t']", &["/srv/ä\r\t"]),
    ];
    for (text, expected) in table {
        assert_eq!(specs(text), expected, "{text}");
    }
}

#[test]
fn spans_hold_the_literals_with_their_quotes() {
    let text = "disk = [ 'ä', \"b\\\"\" ] # ";
    assert_eq!(disk_entries(text.as_bytes()).unwrap_err().to_string(), {
        "Line 1: a comment without the end of its line"
    });
    let text = &text[..text.len() - 2];
    let literals: Vec<_> =
        disk_entries(text.as_bytes()).unwrap().into_iter().map(|entry| &text[entry.span]).collect();
    assert_eq!(literals, ["'ä'", "\"b\\\"\""]);
}

#[test]
fn what_is_not_understood_is_refused() {
    let deep = format!("a={}{}", "[".repeat(100_000), "]".repeat(100_000));
    for text in [
        "disk = 'a'",
        "disk = 3",
        "disk = [ 3 ]",
        "disk = [ ['a'] ]",
        "disk = 'a'\ndisk += ['b']",
        "disk = ['a']\ndisk += 'b'",
        "disk = [ 'a' 'b' ]",
        "disk = [ , ]",
        "disk = [ 'a',, ]",
        "disk = [ 'a'; 'b' ]",
        "disk = [ 'a' ",
        "disk = [ 'a' ] 'b'",
        "disk =\n[ 'a' ]",
        "disk = [ 'a ]\n",
        "disk = [ 'a\\' ]\n",
        "disk = [ 'a\\\nb' ]\n",
        "disk = [ 'a\nb' ]\n",
        r"disk = [ '\x41' ]",
        r"disk = [ '\101' ]",
        r"disk = [ '\q' ]",
        "disk = [ 'a' ]\r\n",
        "disk = [ a ]",
        "disk = [ u'a' ]",
        "disk == [ 'a' ]",
        "disk + = [ 'a' ]",
        "disk",
        "disk =",
        "Disk = [ 'a' ]",
        "'disk' = [ 'a' ]",
        "disk = [ 'a' ] # no end",
        "ä = 1",
        "disk = [ 'a' + 'b' ]",
        &deep,
    ] {
        assert!(disk_entries(text.as_bytes()).is_err(), "{text}");
    }
    let error = disk_entries(b"a=1\n# x\ndisk = [\n 'a'\n 'b' ]").unwrap_err().to_string();
    assert_eq!(error, "Line 5: no ',' between the values of a list");
}

#[test]
fn a_specification_keeps_all_but_the_image() {
    for (old, new) in [
        ("/a,raw,xvda,w", "vdev=xvda,access=w"),
        ("/a,,xvda", "vdev=xvda"),
        ("/a,qcow2,xvda,", "vdev=xvda"),
        ("/a,qcow2,xvda,,", "vdev=xvda,access="),
        (" /a , , ", ""),
        ("/a,raw,xvda,r,discard", "vdev=xvda,access=r,discard"),
        ("\t/a,\traw,\txvda", "vdev=xvda"),
        ("format=vhd, vdev=xvda, access=rw, target=/srv/a, b=c", "vdev=xvda,access=rw"),
        ("vdev=xvda,cdrom,access=ro,target=", "vdev=xvda,cdrom,access=ro"),
        ("vdev=xvda,devtype=cdrom", "vdev=xvda,devtype=cdrom"),
        (",,xvda,target=/a", "vdev=xvda"),
        ("phy:/dev/vg/a,xvda,w", "vdev=xvda,access=w"),
        ("file:/a,xvda:disk,w", "vdev=xvda,devtype=disk,access=w"),
        ("tap2:aio:/a,xvda,w", "vdev=xvda,access=w"),
        ("tap:qcow2:/a,xvda:cdrom,r", "vdev=xvda,devtype=cdrom,access=r"),
        ("ioemu: raw:/a,xvda", "vdev=xvda"),
        (",xvda:cdrom,r", "vdev=xvda,devtype=cdrom,access=r"),
        ("drbd:r0,xvda,w", "vdev=xvda,access=w"),
        ("format=raw,backendtype=phy,script=block-x,vdev=xvda,target=/a", "vdev=xvda"),
        ("backendtype=qdisk,vdev=xvda,target=/a", "backendtype=qdisk,vdev=xvda"),
        (
            "/a,raw,xvda,no-discard,direct-io-safe,backend=net 1,colo,colo-host=h,colo-port=1",
            "vdev=xvda,no-discard,direct-io-safe,backend=net 1,colo,colo-host=h,colo-port=1",
        ),
        // Both count, the later more; unknown parameters of a newer Xen stay.
        ("access=r,/a,raw,xvda,w", "access=r,vdev=xvda,access=w"),
        ("grant_usage=1,new-one=a=b,vdev=xvda,target=/a", "grant_usage=1,new-one=a=b,vdev=xvda"),
    ] {
        let result = respec(old, &qcow2("xvda"));
        if new.is_empty() {
            assert!(result.is_err(), "{old}");
        } else {
            assert_eq!(result.unwrap(), format!("format=qcow2,{new},target=/n"), "{old}");
        }
    }
}

#[test]
fn a_disk_is_known_by_any_of_its_names() {
    for name in ["d0p0", "51712", "0xca00"] {
        let spec = format!("/a,raw,{name},w");
        let new = respec(&spec, &qcow2("xvda")).unwrap();
        assert_eq!(new, format!("format=qcow2,vdev={name},access=w,target=/n"));
        let text = format!("disk = ['{spec}', '/b,raw,xvdb,w']");
        let known =
            [Known { spec: &spec, vdev: name }, Known { spec: "/b,raw,xvdb,w", vdev: "xvdb" }];
        let new = rewrite(text.as_bytes(), &known, &[qcow2("xvda")]).unwrap();
        assert!(String::from_utf8(new).unwrap().contains(&format!("vdev={name}")));
        let twice = rewrite(text.as_bytes(), &known, &[qcow2("xvda"), qcow2(name)]);
        assert!(matches!(twice, Err(BadCfg::Twice(_))), "{name}");
    }
    assert!(respec("/a,raw,d0p1,w", &qcow2("xvda")).is_err());
}

#[test]
fn a_raw_image_keeps_its_script_and_backend() {
    let raw = Change { target: "/dev/b".into(), format: "raw".into(), ..qcow2("xvda") };
    let old = "script=block-x,backendtype=phy,vdev=xvda,target=/dev/a";
    let new = "format=raw,script=block-x,backendtype=phy,vdev=xvda,target=/dev/b";
    assert_eq!(respec(old, &raw).unwrap(), new);
    let new = "format=raw,script=block-drbd,vdev=xvda,target=/dev/b";
    assert_eq!(respec("drbd:r0,xvda", &raw).unwrap(), new);
}

#[test]
fn a_specification_not_understood_is_refused() {
    for old in [
        "",
        "/a",
        "/a,raw,xvdb,w",
        "/a,raw,xvda,w,new-flag",
        "/a,new-flag,xvda",
        "/a,raw,xvda,new-flag",
        "/a=b,raw,xvda",
        "/a,raw,xvda,target=/b",
        "iscsi2:/a,xvda",
        "http://a,raw,xvda",
        "/a,raw,xvda,foo:",
        "/a\n,raw,xvda",
    ] {
        assert!(respec(old, &qcow2("xvda")).is_err(), "{old}");
    }
}

#[test]
fn targets_may_be_odd_but_not_impossible() {
    let new = |target: &str, format: &str| {
        let change = Change { target: target.into(), format: format.into(), ..qcow2("xvda") };
        respec("/a,raw,xvda", &change)
    };
    assert_eq!(new("vhd:/a, b=c", "vhd").unwrap(), "format=vhd,vdev=xvda,target=vhd:/a, b=c");
    // libxlutil takes one comma off the end.
    assert_eq!(new("/a,", "raw").unwrap(), "format=raw,vdev=xvda,target=/a,,");
    for (target, format) in [("", "raw"), ("/a\nb", "raw"), ("/a", ""), ("/a", "vmdk")] {
        let error = new(target, format).unwrap_err();
        assert!(matches!(error, BadCfg::Change { .. }), "{error}");
    }
}

#[test]
fn only_the_literals_change() {
    let text = "# disk = [ '/a,raw,xvda,w' ]\nname=\"x\" ;disk = [ '/a,raw,xvda,w' # a\n ,\t\
                \"phy:/b,xvdb,r\",\n'/c,,xvdc',]\nmemory=1";
    let disks = [("/a,raw,xvda,w", "xvda"), ("phy:/b,xvdb,r", "xvdb"), ("/c,,xvdc", "xvdc")]
        .map(|(spec, vdev)| Known { spec, vdev });
    let a = Change { target: r#"/it's "\"#.into(), ..qcow2("xvda") };
    let b = Change { vdev: "xvdb".into(), ..a.clone() };
    assert_eq!(
        String::from_utf8(rewrite(text.as_bytes(), &disks, &[b, a]).unwrap()).unwrap(),
        "# disk = [ '/a,raw,xvda,w' ]\nname=\"x\" ;disk = \
         [ 'format=qcow2,vdev=xvda,access=w,target=/it\\'s \"\\\\' # a\n ,\t\
         \"format=qcow2,vdev=xvdb,access=r,target=/it's \\\"\\\\\",\n'/c,,xvdc',]\nmemory=1"
    );
    assert_eq!(rewrite(text.as_bytes(), &disks, &[]).unwrap(), text.as_bytes());
}

#[test]
fn bytes_outside_of_the_disks_are_kept_whatever_they_mean() {
    let text = b"# f\xfcr\ndisk = [ '/a,raw,xvda' ] # \xe4\nextra = '\xff\xfe'\n";
    let disks = [Known { spec: "/a,raw,xvda", vdev: "xvda" }];
    let new = rewrite(text, &disks, &[qcow2("xvda")]).unwrap();
    let at = |text: &[u8]| text.iter().position(|byte| *byte == b'[').unwrap();
    assert_eq!(new[..at(&new)], text[..at(text)]);
    assert!(new.ends_with(b" ] # \xe4\nextra = '\xff\xfe'\n"));
    let error = disk_entries(b"\ndisk = [ '/\xe4,raw,xvda' ]\n").unwrap_err();
    assert_eq!(error.to_string(), "Line 2: a disk that is not UTF-8");
}

#[test]
fn a_change_must_be_about_one_disk_of_the_same_list() {
    let text = b"disk = [ '/a,raw,xvda', '/b,raw,xvda', '/c,raw,xvdb' ]";
    let known = |spec, vdev| Known { spec, vdev };
    let disks =
        [known("/a,raw,xvda", "xvda"), known("/b,raw,xvda", "xvda"), known("/c,raw,xvdb", "xvdb")];
    let twice = |vdev: &str| Err(BadCfg::Twice(vdev.into()));
    assert_eq!(rewrite(text, &disks, &[qcow2("xvda")]), twice("xvda"));
    assert_eq!(rewrite(text, &disks, &[qcow2("xvdb"), qcow2("xvdb")]), twice("xvdb"));
    assert_eq!(rewrite(text, &disks, &[qcow2("hda")]), Err(BadCfg::NoDisk("hda".into())));
    assert_eq!(rewrite(text, &disks[..2], &[qcow2("xvdb")]), Err(BadCfg::List));
    let other = [disks[0], disks[2], disks[1]];
    assert_eq!(rewrite(text, &other, &[qcow2("xvdb")]), Err(BadCfg::List));
}
