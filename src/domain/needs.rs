//! What `xl restore` needs on the host for the devices of a saved configuration, except disks.
//! Pure.
//!
//! A restore does not read the kernel, the RAM disk or the firmware: they are in the guest's memory
//! (libxl_create.c, `domcreate_bootloader_done`, builds nothing if there is a stream). But the QEMU of an
//! HVM guest opens the kernel and RAM disk of a direct boot again (libxl_dm.c, `-kernel`, `-initrd`).

use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use crate::domain::{DomainConfig, GuestType, driver_domain};
use crate::need::{Requirement, script};
use crate::release::BOOT_LOADER;

/// The first port of VNC: that of display 0 (RFC 6143).
const VNC: u64 = 5900;
/// The default bridge (libxl_nic.c, `libxl__device_nic_setdefault`).
const DEFAULT_BRIDGE: &str = "xenbr0";
/// What scripts/vif-common.sh takes for it (`dom0_ip`).
const DEFAULT_GATEWAY: &str = "eth0";
const DEFAULT_VIF_SCRIPT: &str = "vif-bridge";
/// The first number that no domain has (xen/include/public/xen.h, `DOMID_FIRST_RESERVED`).
const FIRST_RESERVED: u32 = 0x7ff0;
/// What Xen needs for a guest in addition to its memory, in KiB (libxl_internal.h,
/// `LIBXL_PV_EXTRA_MEMORY` and `LIBXL_HVM_EXTRA_MEMORY`).
const PV_EXTRA: u64 = 1024;
const HVM_EXTRA: u64 = 2048;
/// What a guest may have above its target, in KiB (`LIBXL_MAXMEM_CONSTANT`).
const MAXMEM_CONSTANT: u64 = 1024;

/// Told of a domain that [has a second console](DomainConfig::has_second_console).
pub const SECOND_CONSOLE: &str = "the domain has a second console (channel): Linux from 6.1.64 and 6.6.3 on may hang when \
                                  it is restored with one; try it with xl save and xl restore (docs/quiesce.md)";

impl DomainConfig {
    /// Whether a PV or PVH guest has another console than the first one. When Linux comes back from a save, its driver
    /// closes the event channel that such a console had before, which may be another device's by then
    /// (drivers/tty/hvc/hvc_xen.c, `xencons_resume`).
    pub fn has_second_console(&self) -> bool {
        let channels = self.0["channels"].as_array().is_some_and(|channels| !channels.is_empty());
        channels && !matches!(self.guest_type(), Ok(GuestType::Hvm))
    }

    /// The needs of its devices. See the module documentation.
    pub fn needs(&self) -> Vec<Requirement> {
        let mut needs = Vec::new();
        let hvm = self.guest_type().is_ok_and(|kind| kind == GuestType::Hvm);
        needs.extend(self.own_emulator().map(|model| Requirement::Program(model.into())));
        if hvm {
            needs.extend(self.booted());
        }
        let pool = self.0.pointer("/c_info/pool_name").and_then(Value::as_str);
        let pool = pool.filter(|name| !name.is_empty()).map(ToOwned::to_owned);
        needs.extend(pool.clone().map(Requirement::Pool));
        let of_each = self.pinned();
        if !of_each.is_empty() {
            let pv = self.guest_type().is_ok_and(|kind| kind == GuestType::Pv);
            let own = if pv { "vm.pv.cpumask" } else { "vm.hvm.cpumask" };
            let options = ["vm.cpumask", own];
            needs.push(Requirement::CpuMask { options, of_each: of_each.clone() });
            needs.push(Requirement::Processors { pool, of_each });
        }
        self.list("nics").for_each(|nic| of_nic(nic, hvm, &mut needs));
        for key in ["vtpms", "p9s", "pvcallsifs", "vkbs", "vdispls", "vsnds", "channels", "vfbs"] {
            needs.extend(self.list(key).filter_map(backend));
        }
        let shared = self.list("p9s").filter_map(|share| share.get("path")?.as_str());
        needs.extend(shared.map(|path| Requirement::Directory(path.into())));
        needs.extend(self.list("pcidevs").filter_map(pci));
        needs.extend(self.fixed_domid().map(Requirement::Domid));
        let sockets = self
            .list("channels")
            .filter_map(|channel| channel.get("connection.socket")?.get("path")?.as_str());
        needs.extend(
            sockets
                .filter_map(|path| Path::new(path).parent())
                .map(|path| Requirement::WritableDirectory(path.into())),
        );
        needs.extend(self.ports());
        needs.extend(self.addresses());
        needs.extend(self.device_model_files());
        needs.extend(self.usb_devices());
        needs.push(self.memory_needed());
        needs.extend(self.needs_all_memory().map(Requirement::AllMemory));
        needs
    }

    /// The QEMU that the user has named for it.
    pub fn own_emulator(&self) -> Option<&str> {
        self.path_at("/b_info/device_model")
    }

    /// Whether it has a QEMU whatever its disks are (libxl_dm.c, `libxl__need_xenpv_qemu`).
    pub fn has_emulator(&self) -> bool {
        let hvm = self.guest_type().is_ok_and(|kind| kind == GuestType::Hvm);
        let by_qemu = |key: &&str| self.list(key).any(|device| backend(device).is_none());
        hvm || ["vfbs", "p9s", "channels"].iter().any(by_qemu)
    }

    /// The user as whom its QEMU runs.
    pub fn emulator_user(&self) -> Option<&str> {
        let name = self.0.pointer("/b_info/device_model_user").and_then(Value::as_str);
        name.filter(|name| !name.is_empty())
    }

    /// The number that the domain has to have: `xl save -D` writes it.
    fn fixed_domid(&self) -> Option<u32> {
        let number = self.0.pointer("/c_info/domid").and_then(Value::as_u64)?;
        u32::try_from(number).ok().filter(|domid| (1..FIRST_RESERVED).contains(domid))
    }

    /// The files that a start reads, but a restore does not.
    pub fn start_needs(&self) -> Vec<Requirement> {
        let mut needs = self.booted();
        let loader = BOOT_LOADER.iter().find_map(|at| self.path_at(at));
        needs.extend(loader.map(|path| Requirement::Program(path.into())));
        needs
    }

    fn booted(&self) -> Vec<Requirement> {
        let files = ["/b_info/kernel", "/b_info/ramdisk", "/b_info/device_tree"];
        let files = files.iter().filter_map(|at| self.path_at(at));
        files.map(|path| Requirement::Usable { path: path.into(), writable: false }).collect()
    }

    fn path_at(&self, pointer: &str) -> Option<&str> {
        self.0.pointer(pointer).and_then(Value::as_str).filter(|path| path.starts_with('/'))
    }

    fn list(&self, key: &str) -> impl Iterator<Item = &Value> {
        self.0.get(key).and_then(Value::as_array).into_iter().flatten()
    }

    /// The processors to which each virtual one is bound (`cpus=`). Xen refuses those of which none is in the pool,
    /// and libxl then makes no domain (libxl_dom.c, `libxl__build_pre`).
    fn pinned(&self) -> Vec<Vec<u32>> {
        let lists = self.0.pointer("/b_info/vcpu_hard_affinity").and_then(Value::as_array);
        let numbers = |list: &Value| -> Vec<u32> {
            let numbers = list.as_array().into_iter().flatten().filter_map(Value::as_u64);
            numbers.filter_map(|number| u32::try_from(number).ok()).collect()
        };
        let lists = lists.into_iter().flatten().map(numbers);
        lists.filter(|numbers| !numbers.is_empty()).collect()
    }

    /// The addresses that QEMU listens on. It does not start where the host does not have them. A name is not looked up.
    fn addresses(&self) -> Vec<Requirement> {
        let machine = self.0.pointer("/b_info/type.hvm");
        let screens = self.list("vfbs").chain(machine).filter_map(|screen| screen.get("vnc"));
        let vnc = screens.filter(|vnc| is(vnc, "enable"));
        let vnc = vnc.filter_map(|vnc| Some(("VNC", vnc.get("listen")?.as_str()?)));
        let spice = machine.and_then(|machine| machine.get("spice"));
        let spice = spice.filter(|spice| is(spice, "enable"));
        let spice = spice.and_then(|spice| Some(("SPICE", spice.get("host")?.as_str()?)));
        vnc.chain(spice)
            .filter_map(|(purpose, text)| {
                Some(Requirement::Address { purpose, ip: address(text)? })
            })
            .collect()
    }

    /// The fixed ports: a port that QEMU chooses itself is always free.
    fn ports(&self) -> Vec<Requirement> {
        let machine = self.0.pointer("/b_info/type.hvm");
        let screens = self.list("vfbs").chain(machine).filter_map(|screen| screen.get("vnc"));
        let vnc = screens.filter(|vnc| is(vnc, "enable")).filter_map(|vnc| {
            let fixed = vnc.get("findunused").is_some_and(|value| !truth(value));
            let display = vnc.get("display").and_then(Value::as_u64).unwrap_or(0);
            let listen = vnc.get("listen").and_then(Value::as_str).unwrap_or_default();
            // libxl's default (libxl_create.c, libxl_vfb.c).
            let listen = if listen.is_empty() { "127.0.0.1" } else { listen };
            // One behind the address counts more (libxl_dm.c, `-vnc`).
            let behind = listen.rsplit_once(':').filter(|(ip, _)| address(ip).is_some());
            let display = behind.and_then(|(_, text)| text.parse().ok()).unwrap_or(display);
            fixed.then_some(("VNC", VNC.saturating_add(display), address(listen)))
        });
        let spice = machine.and_then(|machine| machine.get("spice"));
        let spice = spice.filter(|spice| is(spice, "enable")).into_iter().flat_map(|spice| {
            let ip = spice.get("host").and_then(Value::as_str).and_then(address);
            let port = |key: &str| spice.get(key).and_then(Value::as_u64).filter(|port| *port != 0);
            let ports = [port("port"), port("tls_port")].into_iter().flatten();
            ports.map(move |port| ("SPICE", port, ip))
        });
        let serial = machine.into_iter().flat_map(|machine| {
            let one = machine.get("serial").into_iter();
            one.chain(machine.get("serial_list").and_then(Value::as_array).into_iter().flatten())
        });
        let serial = serial.filter_map(|serial| listening(serial.as_str()?));
        let serial = serial.map(|(ip, port)| ("serial", port, ip));
        vnc.chain(spice)
            .chain(serial)
            .filter_map(|(purpose, port, ip)| {
                Some(Requirement::Port { purpose, number: u16::try_from(port).ok()?, ip })
            })
            .collect()
    }

    fn usb_devices(&self) -> impl Iterator<Item = Requirement> {
        self.list("usbdevs").filter_map(|device| {
            let number = |key: &str| device.pointer(&format!("/type.hostdev/{key}"))?.as_u64();
            Some(Requirement::Usb { bus: number("hostbus")?, number: number("hostaddr")? })
        })
    }

    /// The files that the user's own arguments for QEMU name as `file=PATH`.
    fn device_model_files(&self) -> Vec<Requirement> {
        let lists = ["extra", "extra_pv", "extra_hvm"];
        lists
            .iter()
            .filter_map(|key| self.0.pointer(&format!("/b_info/{key}"))?.as_array())
            .flatten()
            .filter_map(Value::as_str)
            .flat_map(|argument| argument.split(','))
            .filter_map(|option| option.strip_prefix("file="))
            .filter(|path| path.starts_with('/'))
            .map(|path| Requirement::Usable { path: path.into(), writable: false })
            .collect()
    }

    /// The memory that libxl takes for the domain, without what it may take for itself (libxl_mem.c,
    /// `libxl__domain_need_memory_calculate`).
    fn memory_needed(&self) -> Requirement {
        let number = |key: &str| self.memory_at(key).unwrap_or(0);
        let pv = self.guest_type().is_ok_and(|kind| kind == GuestType::Pv);
        let extra = if pv { PV_EXTRA } else { HVM_EXTRA };
        Requirement::Memory {
            guest: self.memory_at("target_memkb").unwrap_or_else(|| self.memory_kib()),
            overhead: number("shadow_memkb") + number("iommu_memkb") + extra,
        }
    }

    /// What an HVM or PVH guest cannot have together with less memory than its maximum. libxl refuses to make such a
    /// domain, also if it is restored (libxl_create.c, `libxl__domain_config_setdefault`: "PoD").
    fn needs_all_memory(&self) -> Option<&'static str> {
        let pv = self.guest_type().is_ok_and(|kind| kind == GuestType::Pv);
        let less = self.memory_at("target_memkb") < self.memory_at("max_memkb");
        let set = |at: &str| {
            let value = self.0.pointer(at);
            value.is_some_and(|value| match value {
                Value::String(text) => !["disabled", "default", "unknown"].contains(&text.as_str()),
                other => truth(other),
            })
        };
        let what = if set("/b_info/altp2m") || set("/b_info/type.hvm/altp2m") {
            "altp2m"
        } else if set("/c_info/passthrough") {
            "passthrough"
        } else {
            return None;
        };
        (!pv && less).then_some(what)
    }

    fn memory_at(&self, key: &str) -> Option<u64> {
        let kib = self.0.pointer(&format!("/b_info/{key}")).and_then(Value::as_u64);
        kib.filter(|kib| *kib <= super::MAX_MEMORY_KIB)
    }

    /// Raises the memory that a restore gives the domain to what it has now, in KiB, if its balloon has not followed
    /// its target: a restore allows the guest no more than the target (libxl_dom.c, `libxl__build_pre`) and fails where
    /// the image has more. Returns the target.
    pub fn hold(&mut self, now: u64) -> Option<u64> {
        let target = self.target_below(now)?;
        let entry = self.0.pointer_mut("/b_info/target_memkb")?;
        *entry = now.into();
        Some(target)
    }

    /// The target, in KiB, if a restore to it would not give the domain what it has now.
    pub fn target_below(&self, now: u64) -> Option<u64> {
        let target = self.memory_at("target_memkb")?;
        (now > target + MAXMEM_CONSTANT && now <= super::MAX_MEMORY_KIB).then_some(target)
    }
}

fn of_nic(nic: &Value, hvm: bool, needs: &mut Vec<Requirement>) {
    if let Some(domain) = backend(nic) {
        needs.push(domain);
        return;
    }
    let text = |key: &str| nic.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = text("script").unwrap_or(DEFAULT_VIF_SCRIPT);
    needs.extend([Requirement::Script(script(name)), Requirement::Driver("vif")]);
    // The scripts refuse to rename a device where another one has the name (scripts/vif-common.sh, `rename_vif`).
    if let Some(name) = text("ifname") {
        needs.push(Requirement::DeviceName(name.to_owned()));
        // The name of the emulated card, which an HVM guest has in addition.
        needs.extend(hvm.then(|| Requirement::DeviceName(format!("{name}-emu"))));
    }
    let bridge = text("bridge").unwrap_or(DEFAULT_BRIDGE);
    match Path::new(name).file_name().and_then(|name| name.to_str()) {
        Some("vif-bridge") => needs.push(Requirement::Bridge(bridge.to_owned())),
        // With a tag and trunks: `ovsbr0.10:20:30` (scripts/vif-openvswitch).
        Some("vif-openvswitch") => {
            let name = bridge.split(['.', ':']).next().unwrap_or(bridge);
            needs.extend([Requirement::Device(name.to_owned()), Requirement::OpenVswitch]);
        }
        // 4.17 and 4.20: vif-nat has an address of its own.
        Some("vif-route") if script(name) == script("vif-route") => {
            needs.push(Requirement::Gateway(
                text("gatewaydev").unwrap_or(DEFAULT_GATEWAY).to_owned(),
            ));
        }
        // Other scripts use the value in their own way.
        _ => {}
    }
}

/// An address as libxl's configuration has it: VNC may have a display behind it (libxl_dm.c, `-vnc`).
fn address(text: &str) -> Option<IpAddr> {
    let parsed = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    parsed(text).or_else(|| parsed(text.rsplit_once(':')?.0))
}

/// The domain that serves a device, if that is not dom0.
fn backend(device: &Value) -> Option<Requirement> {
    driver_domain(device).map(|name| Requirement::Backend(name.to_owned()))
}

/// By its address; libxl leaves zeros out. One that has only a name is looked up by libxl.
fn pci(device: &Value) -> Option<Requirement> {
    let number = |key: &str| device.get(key).and_then(Value::as_u64).unwrap_or(0);
    let numbers = ["domain", "bus", "dev", "func"].map(number);
    let named = device.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    let [domain, bus, dev, func] = numbers;
    let device = Requirement::Pci {
        device: format!("{domain:04x}:{bus:02x}:{dev:02x}.{func:x}"),
        seize: is(device, "seize"),
    };
    Some(device).filter(|_| !named || numbers != [0; 4])
}

fn is(entry: &Value, key: &str) -> bool {
    entry.get(key).is_some_and(truth)
}

/// A `libxl_defbool`, which libxl writes as a bool or as "True".
fn truth(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::String(text) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// The address and port of a serial line that QEMU offers: `tcp:HOST:PORT,server,...`, or `telnet:`.
fn listening(serial: &str) -> Option<(Option<IpAddr>, u64)> {
    let (end, options) = serial.split_once(',')?;
    let rest = end.strip_prefix("tcp:").or(end.strip_prefix("telnet:"))?;
    let server = options.split(',').any(|option| matches!(option, "server" | "server=on"));
    let (host, port) = rest.rsplit_once(':')?;
    Some((address(host), port.parse().ok()?)).filter(|_| server)
}

#[cfg(test)]
mod tests;
