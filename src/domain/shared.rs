//! The parts of a domain's configuration that two domains cannot share: ports, sockets and files that its QEMU
//! opens, and devices of the host. From libxl's JSON (libxl_types.idl of Xen 4.17).

use serde_json::{Value, json};

use super::DomainConfig;

/// Options of QEMU that claim something exclusively, unless their value is one of these words.
const SINGLE: [(&str, &[&str]); 14] = [
    ("vnc", &["none"]),
    ("spice", &[]),
    ("monitor", &["none", "null", "stdio", "pty", "vc"]),
    ("qmp", &["none", "null", "pty"]),
    ("qmp-pretty", &["none", "null", "pty"]),
    ("serial", &["none", "null", "pty", "vc"]),
    ("parallel", &["none", "null", "pty", "vc"]),
    ("debugcon", &["none", "null", "pty", "vc"]),
    ("gdb", &["none", "null", "pty"]),
    ("pidfile", &[]),
    ("tpmdev", &[]),
    ("incoming", &[]),
    ("mem-path", &[]),
    ("D", &[]),
];
/// Parts of an option's value that claim something exclusively.
const PARTS: [&str; 6] = ["path=", "hostfwd=", "server", "listen=", "localaddr=", "host="];
/// Options whose values may contain them. Drives are checked elsewhere.
const WITH_PARTS: [&str; 8] =
    ["chardev", "netdev", "nic", "net", "mon", "device", "fsdev", "object"];

impl DomainConfig {
    /// What a second domain cannot have, for messages.
    pub fn unshareable(&self) -> Vec<String> {
        const DEVICES: [&str; 4] = ["pcidevs", "dtdevs", "usbdevs", "vtpms"];
        const OF_THE_HOST: [&str; 3] = ["ioports", "irqs", "iomem"];
        let some = |value: &Value| value.as_array().is_some_and(|list| !list.is_empty());
        let mut found: Vec<String> =
            DEVICES.iter().filter(|key| some(&self.0[**key])).map(ToString::to_string).collect();
        let build = &self.0["b_info"];
        found.extend(OF_THE_HOST.iter().filter(|key| some(&build[**key])).map(ToString::to_string));
        let hvm = &build["type.hvm"];
        if is_on(&hvm["spice"]["enable"]) {
            let port = ["port", "tls_port"].iter().find_map(|key| hvm["spice"][*key].as_i64());
            found.push(format!("SPICE on port {}", port.unwrap_or_default()));
        }
        let serials = hvm["serial_list"].as_array().into_iter().flatten();
        let serials = serials.chain([&hvm["serial"]]).filter_map(Value::as_str);
        found.extend(serials.filter(|to| !is_own("serial", to)).map(|to| format!("serial={to}")));
        let usb = hvm["usbdevice_list"].as_array().into_iter().flatten();
        let usb = usb.chain([&hvm["usbdevice"]]).filter_map(Value::as_str);
        found.extend(
            usb.filter(|device| device.starts_with("host")).map(|d| format!("usbdevice={d}")),
        );
        let channels = self.0["channels"].as_array().into_iter().flatten();
        let paths =
            channels.filter_map(|channel| channel.pointer("/connection.socket/path")?.as_str());
        found.extend(paths.map(|path| format!("a channel to the socket {path}")));
        // With either domain, libxl ends all processes of that user (libxl_dm.c, `kill_device_model_uid_child`).
        found.extend(self.emulator_user().map(|user| format!("device_model_user={user}")));
        found.extend(self.unshareable_arguments());
        found
    }

    /// Addresses to which dom0 can have one route only (Xen's scripts vif-route and vif-nat: `ip route add`).
    pub fn routed(&self) -> impl Iterator<Item = String> {
        let nics = self.0["nics"].as_array().into_iter().flatten();
        let routes = |script: &str| script.ends_with("vif-route") || script.ends_with("vif-nat");
        nics.filter(move |nic| nic["script"].as_str().is_some_and(routes))
            .filter_map(|nic| nic["ip"].as_str())
            .filter(|ip| !ip.is_empty())
            .map(|ip| format!("a route to {ip} (vif-route, vif-nat)"))
    }

    /// The names in dom0 that the user gave network devices (`vifname`).
    pub fn named_nics(&self) -> impl Iterator<Item = &str> {
        let nics = self.0["nics"].as_array().into_iter().flatten();
        nics.filter_map(|nic| nic["ifname"].as_str()).filter(|name| !name.is_empty())
    }

    /// What a guest can write to and a snapshot does not contain, for messages.
    pub fn not_saved(&self) -> impl Iterator<Item = &'static str> {
        const WRITTEN: [(&str, &str); 3] = [
            ("p9s", "shared directories (9pfs)"),
            ("vtpms", "TPM (vtpm)"),
            ("usbdevs", "USB devices"),
        ];
        let some = |key: &str| self.0[key].as_array().is_some_and(|list| !list.is_empty());
        WRITTEN.into_iter().filter(move |(key, _)| some(key)).map(|(_, what)| what)
    }

    /// The arguments of its QEMU that a second one cannot have.
    fn unshareable_arguments(&self) -> Vec<String> {
        let arguments = self.device_model_args();
        let mut found = Vec::new();
        for (at, argument) in arguments.iter().enumerate() {
            let option = argument.strip_prefix("--").or(argument.strip_prefix('-'));
            let Some(option) = option else { continue };
            let value = arguments.get(at + 1).map_or("", String::as_str);
            let single = SINGLE.iter().any(|(name, _)| *name == option) && !is_own(option, value);
            let part = WITH_PARTS.contains(&option)
                && value.split(',').any(|part| PARTS.iter().any(|with| part.starts_with(with)));
            if option == "s" || single || part {
                found.push(format!("device_model_args {}", [argument, value].join(" ").trim_end()));
            }
        }
        found
    }

    /// Lets each VNC server use another port if its own is not free. Returns the displays of those that had a
    /// fixed port.
    pub fn share_vnc(&mut self) -> Vec<i64> {
        let of_vfbs = self.0.get_mut("vfbs").and_then(Value::as_array_mut).into_iter().flatten();
        let mut servers: Vec<&mut Value> = of_vfbs.filter_map(|vfb| vfb.get_mut("vnc")).collect();
        // Two borrows of one tree: the other half comes afterwards.
        let mut displays: Vec<i64> = servers.iter_mut().filter_map(|vnc| share(vnc)).collect();
        displays.extend(self.0.pointer_mut("/b_info/type.hvm/vnc").and_then(share));
        displays
    }
}

fn share(vnc: &mut Value) -> Option<i64> {
    let fixed = is_on(&vnc["enable"]) && is_off(&vnc["findunused"]);
    fixed.then(|| {
        vnc["findunused"] = json!("True");
        vnc["display"].as_i64().unwrap_or_default()
    })
}

/// A `libxl_defbool`, which libxl writes as a bool or as "True".
fn is_on(value: &Value) -> bool {
    value.as_bool() == Some(true)
        || value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

fn is_off(value: &Value) -> bool {
    value.as_bool() == Some(false)
        || value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("false"))
}

/// Whether each QEMU creates its own instance of that.
fn is_own(option: &str, value: &str) -> bool {
    let words = SINGLE.iter().find(|(name, _)| *name == option).map_or(&[][..], |(_, words)| words);
    let value = value.split([',', ':']).next().unwrap_or_default();
    words.contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unshareable(json: Value) -> Vec<String> {
        DomainConfig(json).unshareable()
    }

    #[test]
    fn what_no_snapshot_has() {
        let config = DomainConfig(json!({"p9s": [{"tag": "a"}], "vtpms": [], "usbdevs": [{}]}));
        let told: Vec<_> = config.not_saved().collect();
        assert_eq!(told, ["shared directories (9pfs)", "USB devices"]);
    }

    #[test]
    fn what_a_second_domain_cannot_have() {
        for (json, told) in [
            (json!({"vtpms": [{"devid": 0}]}), "vtpms"),
            (json!({"b_info": {"irqs": [4]}}), "irqs"),
            (
                json!({"b_info": {"type.hvm": {"spice": {"enable": "True", "port": 6000}}}}),
                "SPICE on port 6000",
            ),
            (
                json!({"b_info": {"type.hvm": {"serial": "tcp::4444,server"}}}),
                "serial=tcp::4444,server",
            ),
            (
                json!({"b_info": {"type.hvm": {"serial_list": ["pty", "unix:/run/s,server"]}}}),
                "serial=unix:/run/s,server",
            ),
            (json!({"b_info": {"type.hvm": {"usbdevice": "host:1.2"}}}), "usbdevice=host:1.2"),
            (
                json!({"channels": [{"connection": "socket",
                    "connection.socket": {"path": "/run/agent"}}]}),
                "a channel to the socket /run/agent",
            ),
        ] {
            assert_eq!(unshareable(json), [told]);
        }
        assert_eq!(
            unshareable(json!({"pcidevs": [], "channels": [{"connection": "pty"}], "b_info": {
                "type.hvm": {"serial": "pty", "usbdevice_list": ["tablet"], "spice": {"enable": "False"}}}})),
            [""; 0]
        );
    }

    #[test]
    fn arguments_of_qemu() {
        let of = |arguments: &[&str]| unshareable(json!({"b_info": {"extra": arguments}}));
        for one in [
            &["-chardev", "socket,id=a,path=/run/a,server=on,wait=off"][..],
            &["-chardev", "socket,id=vhost,path=/run/ovs"],
            &["-netdev", "user,id=n,hostfwd=tcp::2222-:22"],
            &["-monitor", "unix:/run/m,server"],
            &["-serial", "tcp::4444,server"],
            &["--vnc", ":7"],
            &["-pidfile", "/run/p"],
            &["-gdb", "tcp::1234"],
            &["-s"],
        ] {
            assert_eq!(of(one), [format!("device_model_args {}", one.join(" "))]);
        }
        let harmless = [
            "-serial",
            "pty",
            "-monitor",
            "null",
            "-vnc",
            "none",
            "-global",
            "a.b=1",
            "-nodefaults",
        ];
        assert_eq!(of(&harmless), [""; 0]);
    }

    #[test]
    fn a_fixed_display_is_given_up() {
        let vnc = |enable: &str, unused: &str| json!({"enable": enable, "findunused": unused, "display": 7});
        let mut config = DomainConfig(json!({
            "vfbs": [{"vnc": vnc("True", "False")}, {"vnc": vnc("True", "True")}, {"vnc": vnc("False", "False")}],
            "b_info": {"type.hvm": {"vnc": {"enable": true, "findunused": false, "display": 3}}}
        }));
        assert_eq!(config.share_vnc(), [7, 3]);
        assert_eq!(config.0["vfbs"][0]["vnc"]["findunused"], "True");
        assert_eq!(config.0.pointer("/b_info/type.hvm/vnc/findunused").unwrap(), "True");
        assert_eq!(config.share_vnc(), [0; 0]);
        assert_eq!(DomainConfig(json!({})).share_vnc(), [0; 0]);
    }
}
