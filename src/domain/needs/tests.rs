use serde_json::json;

use super::*;

fn needs(json: &str) -> Vec<Requirement> {
    DomainConfig::parse(json).unwrap().needs()
}

#[test]
fn a_second_console_is_one_of_pv_and_pvh() {
    let of = |kind: &str, channels: Value| {
        let config = json!({"c_info": {"type": kind}, "channels": channels});
        DomainConfig::parse(&config.to_string()).unwrap().has_second_console()
    };
    assert!(of("pv", json!([{"connection": "pty"}])) && of("pvh", json!([{}])));
    assert!(!of("hvm", json!([{}])) && !of("pv", json!([])) && !of("pv", Value::Null));
}

#[test]
fn every_kind_of_device() {
    let found = needs(
        r#"{"c_info": {"type": "hvm", "pool_name": "fast", "domid": 7},
        "b_info": {"target_memkb": 65536, "max_memkb": 131072, "shadow_memkb": 2048,
            "vcpu_hard_affinity": [[1, 2], [], [3]], "device_model": "/opt/qemu", "kernel": "/boot/k",
            "extra": ["-drive", "if=none,file=/srv/x.img,id=a", "-foo"],
            "type.hvm": {"vnc": {"enable": "True", "display": 7, "findunused": "False",
                    "listen": "192.0.2.7"},
                "spice": {"enable": true, "port": 6000, "host": "::1"},
                "serial_list": ["pty", "tcp:127.0.0.1:4444,server,nowait"]}},
        "nics": [{"bridge": "br0", "ifname": "web"}, {"script": "vif-route"}, {"backend_domname": "net"},
            {"script": "vif-openvswitch", "bridge": "ovs0.10:20"},
            {"script": "/etc/xen/scripts/vif-route", "gatewaydev": "dummy0"}, {}],
        "p9s": [{"path": "/srv/share"}],
        "channels": [{"connection": "socket", "connection.socket": {"path": "/run/a/s"}}],
        "pcidevs": [{"bus": 3, "func": 1}, {"name": "gpu"}]}"#,
    );
    let program = |name: &str| Requirement::Script(format!("/etc/xen/scripts/{name}").into());
    let vif = || Requirement::Driver("vif");
    let bridge = |name: &str| Requirement::Bridge(name.into());
    let usable = |path: &str| Requirement::Usable { path: path.into(), writable: false };
    let port =
        |purpose, number, ip: &str| Requirement::Port { purpose, number, ip: ip.parse().ok() };
    let expected = [
        Requirement::Program("/opt/qemu".into()),
        usable("/boot/k"),
        Requirement::Pool("fast".into()),
        Requirement::CpuMask {
            options: ["vm.cpumask", "vm.hvm.cpumask"],
            of_each: vec![vec![1, 2], vec![3]],
        },
        Requirement::Processors { pool: Some("fast".into()), of_each: vec![vec![1, 2], vec![3]] },
        program("vif-bridge"),
        vif(),
        Requirement::DeviceName("web".into()),
        Requirement::DeviceName("web-emu".into()),
        bridge("br0"),
        program("vif-route"),
        vif(),
        Requirement::Gateway("eth0".into()),
        Requirement::Backend("net".into()),
        program("vif-openvswitch"),
        vif(),
        Requirement::Device("ovs0".into()),
        Requirement::OpenVswitch,
        program("vif-route"),
        vif(),
        Requirement::Gateway("dummy0".into()),
        program("vif-bridge"),
        vif(),
        bridge("xenbr0"),
        Requirement::Directory("/srv/share".into()),
        Requirement::Pci { device: "0000:03:00.1".into(), seize: false },
        Requirement::Domid(7),
        Requirement::WritableDirectory("/run/a".into()),
        port("VNC", 5907, "192.0.2.7"),
        port("SPICE", 6000, "::1"),
        port("serial", 4444, "127.0.0.1"),
        Requirement::Address { purpose: "VNC", ip: "192.0.2.7".parse().unwrap() },
        Requirement::Address { purpose: "SPICE", ip: "::1".parse().unwrap() },
        usable("/srv/x.img"),
        Requirement::Memory { guest: 65536, overhead: 2048 + 2048 },
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_guest_that_is_ballooned_down_needs_what_it_has() {
    let text = r#"{"c_info": {"type": "pvh"}, "b_info": {"target_memkb": 65536, "max_memkb": 262144,
        "iommu_memkb": 512}}"#;
    let of = |now: u64| {
        let mut config = DomainConfig::parse(text).unwrap();
        (config.hold(now), config.needs().pop().unwrap(), config.to_json())
    };
    let memory = |guest| Requirement::Memory { guest, overhead: 512 + 2048 };
    for now in [0, 32768, 65536, 65536 + 1024] {
        assert_eq!(of(now), (None, memory(65536), DomainConfig::parse(text).unwrap().to_json()));
    }
    // It has not followed its target: Xen would not let a restore give it that much.
    let (target, needed, json) = of(131072);
    assert_eq!((target, needed), (Some(65536), memory(131072)));
    assert!(json.contains("131072") && !json.contains("65536"), "{json}");
    let mut bare = DomainConfig::parse("{}").unwrap();
    assert_eq!(bare.hold(131072), None);
}

#[test]
fn what_finds_its_own_place_needs_none() {
    let found = needs(
        r#"{"c_info": {"type": "pv", "domid": 0}, "b_info": {"target_memkb": 1024, "kernel": "/boot/k",
        "device_model": "qemu"}, "vfbs": [{"vnc": {"enable": true, "display": 1}}]}"#,
    );
    assert_eq!(found, [Requirement::Memory { guest: 1024, overhead: 1024 }]);
    assert_eq!(listening("tcp:host:1"), None);
    assert_eq!(listening("tcp::5,server=on,wait=off"), Some((None, 5)));
    assert_eq!(listening("unix:/a,server"), None);
}

#[test]
fn a_display_may_stand_behind_the_address() {
    let port = |listen: &str| {
        let vnc = format!(
            r#"{{"enable": true, "display": 2, "findunused": false, "listen": "{listen}"}}"#
        );
        let found =
            needs(&format!(r#"{{"c_info": {{"type": "pv"}}, "vfbs": [{{"vnc": {vnc}}}]}}"#));
        found.iter().find_map(|what| match what {
            Requirement::Port { number, .. } => Some(*number),
            _ => None,
        })
    };
    assert_eq!(port("127.0.0.1"), Some(5902));
    assert_eq!(port("127.0.0.1:7"), Some(5907));
    assert_eq!(port("::1"), Some(5902));
    assert_eq!(port("127.0.0.1:18446744073709551615"), None);
}

#[test]
fn a_usb_device_is_known_by_its_numbers() {
    let device =
        r#"{"devid": 0, "type": "hostdev", "type.hostdev": {"hostbus": 1, "hostaddr": 5}}"#;
    let found = needs(&format!(r#"{{"c_info": {{"type": "pv"}}, "usbdevs": [{device}, {{}}]}}"#));
    assert_eq!(found[0], Requirement::Usb { bus: 1, number: 5 });
    assert_eq!(found.len(), 2);
}

#[test]
fn an_address_is_taken_from_what_libxl_writes() {
    let ip = |text: &str| text.parse().ok();
    assert_eq!(address("192.0.2.7"), ip("192.0.2.7"));
    assert_eq!(address("192.0.2.7:1"), ip("192.0.2.7"));
    assert_eq!(address("::1"), ip("::1"));
    assert_eq!(address("[2001:db8::1]:3"), ip("2001:db8::1"));
    for name in ["", "localhost", "web1:1"] {
        assert_eq!(address(name), None);
    }
}
