use super::*;

/// As `xl list -l` of Xen 4.17 shows a PV guest, shortened.
const PV: &str = r#"{
    "c_info": {"type": "pv", "name": "web1", "uuid": "6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10"},
    "b_info": {"max_vcpus": 2, "max_memkb": 131072, "target_memkb": 65536, "type.pv": {}},
    "disks": [
        {"pdev_path": "/srv/a.qcow2", "vdev": "xvda", "format": "qcow2", "readwrite": 1},
        {"pdev_path": "/srv/b.img", "vdev": "xvdb", "backend": "qdisk", "format": "raw", "readwrite": 1},
        {"pdev_path": "/srv/c.iso", "vdev": "hdc", "format": "raw", "removable": 1, "is_cdrom": 1},
        {"vdev": "hdd", "format": "empty", "removable": 1, "is_cdrom": 1}
    ],
    "on_reboot": "restart"
}"#;

#[test]
fn a_generation_is_renewed_where_there_is_one() {
    let of = |id: Value| {
        let config =
            json!({"c_info": {"type": "hvm"}, "b_info": {"type.hvm": {"ms_vm_genid": id}}});
        let mut config = DomainConfig::parse(&config.to_string()).unwrap();
        config.renew_generation(Uuid::from_u128(0x0102));
        config.0["b_info"]["type.hvm"]["ms_vm_genid"].clone()
    };
    let new = of(json!([7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(new, json!([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]));
    assert_eq!(of(json!(vec![0; 16])), json!(vec![0; 16]));
    assert_eq!(of(Value::Null), Value::Null);
}

#[test]
fn a_configuration_is_read() {
    let config = DomainConfig::parse(PV).unwrap();
    assert_eq!(config.name().unwrap(), "web1");
    assert_eq!(config.guest_type().unwrap(), GuestType::Pv);
    assert_eq!(config.memory_kib(), 131072);
    assert_eq!(config.vcpus(), 2);
    let disks = config.disks().unwrap();
    assert_eq!(disks.len(), 4);
    assert_eq!(disks[0].format, Some(Format::Qcow2));
    assert!(disks[0].writable && !disks[0].cdrom);
    assert!(disks[2].cdrom && !disks[2].writable);
    assert_eq!(disks[3].format, None);
    assert_eq!(disks[3].path, Path::new(""));
}

#[test]
fn only_the_disk_named_changes() {
    let mut config = DomainConfig::parse(PV).unwrap();
    config.set_image("xvdb", Path::new("/srv/b.after-s1.qcow2"), Format::Qcow2).unwrap();
    let disks = config.disks().unwrap();
    assert_eq!(disks[1].path, Path::new("/srv/b.after-s1.qcow2"));
    assert_eq!(disks[1].format, Some(Format::Qcow2));
    let mut back = config.clone();
    back.set_image("xvdb", Path::new("/srv/b.img"), Format::Raw).unwrap();
    assert_eq!(back, DomainConfig::parse(PV).unwrap());
    assert!(matches!(
        config.set_image("xvdz", Path::new("/x"), Format::Raw),
        Err(BadConfig::NoDisk(_))
    ));
}

#[test]
fn another_domain_has_its_own_name_uuid_and_addresses() {
    let uuid: Uuid = "6f2c3c5e-7bd8-4d0e-9f3b-4d2f6fffffff".parse().unwrap();
    let text = r#"{"c_info": {"name": "web1", "uuid": "x", "type": "pv"}, "nics": [
        {"mac": "00:16:3e:00:00:01", "bridge": "xenbr0", "ifname": "web"},
        {"mac": "00:16:3e:00:00:02"}], "pcidevs": [], "vtpms": [{"devid": 0}]}"#;
    let renamed = |keep| {
        let mut config = DomainConfig::parse(text).unwrap();
        config.rename("web2", uuid, keep).unwrap();
        assert_eq!((config.name().unwrap(), config.uuid().unwrap()), ("web2", uuid));
        config.0
    };
    let new =
        json!([{"mac": "00:16:3e:7f:ff:ff", "bridge": "xenbr0"}, {"mac": "00:16:3e:00:00:00"}]);
    assert_eq!(renamed(false)["nics"], new);
    let old =
        json!([{"mac": "00:16:3e:00:00:01", "bridge": "xenbr0"}, {"mac": "00:16:3e:00:00:02"}]);
    assert_eq!(renamed(true)["nics"], old);
    assert!(DomainConfig::parse(PV).unwrap().unshareable().is_empty());
    assert!(DomainConfig::parse("{}").unwrap().rename("a", uuid, false).is_err());
}

#[test]
fn a_format_that_blkback_cannot_serve_is_left_to_qemu() {
    let text =
        r#"{"disks": [{"pdev_path": "/a", "vdev": "xvda", "format": "raw", "backend": "phy"}]}"#;
    let mut config = DomainConfig::parse(text).unwrap();
    config.set_image("xvda", Path::new("/b"), Format::Raw).unwrap();
    assert!(config.to_json().contains("phy"));
    config.set_image("xvda", Path::new("/b"), Format::Qcow2).unwrap();
    assert!(!config.to_json().contains("phy"));
}

#[test]
fn a_vhd_that_tapdisk_serves() {
    let text = r#"{"disks": [
        {"pdev_path": "vhd:/a.vhd", "vdev": "xvda", "format": "raw", "script": "block-tap"},
        {"pdev_path": "vhd:/a.vhd", "vdev": "xvdb", "format": "raw"},
        {"pdev_path": "aio:/a.img", "vdev": "xvdc", "format": "raw", "script": "block-tap"}
    ]}"#;
    let disks = DomainConfig::parse(text).unwrap().disks().unwrap();
    assert!(disks[0].is_tap_vhd() && !disks[1].is_tap_vhd() && !disks[2].is_tap_vhd());
    assert_eq!(disks[0].file(), Path::new("/a.vhd"));
    assert_eq!(disks[1].file(), Path::new("vhd:/a.vhd"));
}

#[test]
fn what_libxl_would_not_write_is_an_error() {
    assert!(DomainConfig::parse("").is_err());
    assert!(DomainConfig::parse("[]").is_err());
    let bare = DomainConfig::parse("{}\0").unwrap();
    assert!(bare.name().is_err() && bare.uuid().is_err() && bare.guest_type().is_err());
    assert!(bare.disks().unwrap().is_empty());
    assert!(DomainConfig::parse(r#"{"disks": 3}"#).unwrap().disks().is_err());
    for vdev in ["", "../x", "a b", "-x", "xvdä", &"x".repeat(23)] {
        let text = json!({"disks": [{"vdev": vdev}]}).to_string();
        assert!(DomainConfig::parse(&text).unwrap().disks().is_err(), "{vdev}");
    }
    assert!(DomainConfig::parse(r#"{"disks": [{}]}"#).unwrap().disks().is_err());
}

#[test]
fn memory_that_is_not_said_is_not_counted() {
    let text = r#"{"b_info": {"max_memkb": 18446744073709551615, "target_memkb": 65536}}"#;
    assert_eq!(DomainConfig::parse(text).unwrap().memory_kib(), 65536);
}
