//! A domain as in libxl's JSON: a thin typed view that keeps every key it does not know. Pure: does
//! not call libxl.
//!
//! The JSON is that of `libxl_domain_config_to_json` (libxl_types.idl): default values are left
//! out, unknown keys are kept, so that the text survives a change of Xen release.

mod needs;
mod shared;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

pub use self::needs::SECOND_CONSOLE;
use crate::names::{is_vdev, same_vdev};
use crate::release::{BOOT_LOADER, TAPBACK};

/// The format of a disk image, `libxl_disk_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain bytes.
    Raw,
    /// The first QEMU format.
    Qcow,
    /// QEMU's own format.
    Qcow2,
    /// An abandoned QEMU format.
    Qed,
    /// Virtual PC, `vpc` in QEMU.
    Vhd,
}

impl Format {
    const ALL: [Format; 5] = [Format::Raw, Format::Qcow, Format::Qcow2, Format::Qed, Format::Vhd];

    /// The name in libxl, xl and this program.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow => "qcow",
            Format::Qcow2 => "qcow2",
            Format::Qed => "qed",
            Format::Vhd => "vhd",
        }
    }

    /// The name of QEMU's driver.
    pub fn qemu(self) -> &'static str {
        match self {
            Format::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// The prefix in a qdisk's xenstore `params` (libxl_internal.c,
    /// `libxl__device_disk_string_of_format`).
    pub fn xenstore(self) -> &'static str {
        match self {
            Format::Raw => "aio",
            other => other.name(),
        }
    }

    /// The format with QEMU's name `driver`.
    pub fn of_qemu(driver: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.qemu() == driver)
    }

    fn parse(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.name() == name)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of a guest, `libxl_domain_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestType {
    /// Paravirtual.
    Pv,
    /// Paravirtual in a hardware container.
    Pvh,
    /// Fully virtual, with an emulated machine.
    Hvm,
}

impl fmt::Display for GuestType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GuestType::Pv => "pv",
            GuestType::Pvh => "pvh",
            GuestType::Hvm => "hvm",
        })
    }
}

/// A domain as it was inspected. Later, its number, its UUID or its name alone may belong to another
/// domain: a reboot changes the number, a copied configuration has the same UUID, and a domain can be
/// renamed. All three are checked again before each step that stops, destroys or changes a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainId {
    pub domid: u32,
    pub uuid: Uuid,
    pub name: String,
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.domid)
    }
}

/// One disk of a domain's configuration, `libxl_device_disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The guest's name for it: `xvda`, `hda`, `sdb1`.
    pub vdev: String,
    /// The target in libxl's configuration: a file or device in dom0, or text for a hotplug script;
    /// empty for an empty CD-ROM drive.
    pub path: PathBuf,
    /// Its format; `None` for one we do not know (`empty` included).
    pub format: Option<Format>,
    /// Whether the guest may write to it.
    pub writable: bool,
    pub cdrom: bool,
    /// The hotplug script, if not libxl's own.
    pub script: Option<String>,
    /// The name of the domain that serves it, if not dom0.
    pub backend_domain: Option<String>,
    /// Whether QEMU is to serve it. Else libxl chooses: the kernel, for raw images (libxl_device.c,
    /// `disk_try_backend`).
    pub by_qemu: bool,
    /// Whether tapback is to serve it (`backendtype=tap`).
    pub by_tapback: bool,
}

impl Disk {
    /// The prefix of the target of a disk that tapdisk serves as a VHD (xen-utils 4.17,
    /// scripts/block-tap).
    pub const TAP_VHD: &str = "vhd:";

    /// Whether tapdisk serves it from a VHD.
    pub fn is_tap_vhd(&self) -> bool {
        let script = self.script.as_deref().map(Path::new).and_then(Path::file_name);
        script.is_some_and(|name| name == "block-tap") && self.tap_file().is_some()
    }

    /// The file or device in dom0.
    pub fn file(&self) -> &Path {
        self.tap_file().filter(|_| self.is_tap_vhd()).unwrap_or(&self.path)
    }

    fn tap_file(&self) -> Option<&Path> {
        self.path.to_str()?.strip_prefix(Disk::TAP_VHD).map(Path::new)
    }
}

/// More memory than any machine has, in KiB. libxl's own number for "not said" is 2^64 - 1
/// (libxl.h, `LIBXL_MEMKB_DEFAULT`).
const MAX_MEMORY_KIB: u64 = 1 << 48;

/// Why a configuration cannot be parsed.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// Not JSON at all.
    #[error("The domain's configuration is not the JSON that libxl writes")]
    Json(#[from] serde_json::Error),
    /// A required key is missing, or has another type.
    #[error("The domain's configuration has no usable {0}")]
    Missing(String),
    /// It has no such disk to change.
    #[error("The domain's configuration has no disk {0}")]
    NoDisk(String),
}

/// A domain's configuration: libxl's JSON and typed access to what we use of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainConfig(Value);

impl DomainConfig {
    /// Reads libxl's JSON; a trailing NUL, as in libxl's own files, is allowed.
    pub fn parse(json: &str) -> Result<Self, BadConfig> {
        let value: Value = serde_json::from_str(json.trim_end_matches('\0'))?;
        if !value.is_object() {
            return Err(BadConfig::Missing("object".into()));
        }
        Ok(DomainConfig(value))
    }

    /// The JSON text, without a trailing NUL.
    pub fn to_json(&self) -> String {
        self.0.to_string()
    }

    pub(crate) fn json(&self) -> &Value {
        &self.0
    }

    fn text(&self, pointer: &str) -> Result<&str, BadConfig> {
        self.0
            .pointer(pointer)
            .and_then(Value::as_str)
            .ok_or_else(|| BadConfig::Missing(pointer.into()))
    }

    pub fn name(&self) -> Result<&str, BadConfig> {
        self.text("/c_info/name")
    }

    pub fn uuid(&self) -> Result<Uuid, BadConfig> {
        self.text("/c_info/uuid")?.parse().map_err(|_| BadConfig::Missing("/c_info/uuid".into()))
    }

    pub fn guest_type(&self) -> Result<GuestType, BadConfig> {
        match self.text("/c_info/type")? {
            "pv" => Ok(GuestType::Pv),
            "pvh" => Ok(GuestType::Pvh),
            "hvm" => Ok(GuestType::Hvm),
            _ => Err(BadConfig::Missing("/c_info/type".into())),
        }
    }

    /// The guest's memory in KiB: the larger of what it has and what it may have.
    pub fn memory_kib(&self) -> u64 {
        ["/b_info/max_memkb", "/b_info/target_memkb"]
            .iter()
            .filter_map(|pointer| self.0.pointer(pointer).and_then(Value::as_u64))
            .filter(|kib| *kib <= MAX_MEMORY_KIB)
            .max()
            .unwrap_or(0)
    }

    pub fn vcpus(&self) -> u64 {
        self.0.pointer("/b_info/max_vcpus").and_then(Value::as_u64).unwrap_or(1)
    }

    /// Whether its QEMU is confined and cannot open files by their names (`dm_restrict`).
    pub fn dm_restrict(&self) -> bool {
        // A `libxl_defbool`, which libxl writes as a bool or as "True".
        match self.0.pointer("/b_info/dm_restrict") {
            Some(Value::Bool(value)) => *value,
            Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
            _ => false,
        }
    }

    /// The arguments that its QEMU gets in addition to libxl's own (`device_model_args`).
    pub fn device_model_args(&self) -> Vec<String> {
        let lists = ["/b_info/extra", "/b_info/extra_pv", "/b_info/extra_hvm"];
        lists
            .iter()
            .filter_map(|list| self.0.pointer(list)?.as_array())
            .flatten()
            .filter_map(|argument| argument.as_str().map(str::to_owned))
            .collect()
    }

    /// The program that loads the kernel from the first disk at every start, if there is one.
    pub fn boot_loader(&self) -> Option<&str> {
        BOOT_LOADER.iter().find_map(|place| self.text(place).ok()).filter(|name| !name.is_empty())
    }

    pub fn disks(&self) -> Result<Vec<Disk>, BadConfig> {
        let Some(disks) = self.0.get("disks") else { return Ok(Vec::new()) };
        let disks = disks.as_array().ok_or_else(|| BadConfig::Missing("disks".into()))?;
        disks.iter().map(disk).collect()
    }

    /// Makes it the configuration of another domain: its name, its UUID and, unless `keep_macs`, its
    /// MAC addresses. Removes the names of network devices in dom0, which must be unique.
    pub fn rename(&mut self, name: &str, uuid: Uuid, keep_macs: bool) -> Result<(), BadConfig> {
        let missing = || BadConfig::Missing("c_info".into());
        let info = self.0.get_mut("c_info").and_then(Value::as_object_mut).ok_or_else(missing)?;
        info.insert("name".into(), json!(name));
        info.insert("uuid".into(), json!(uuid));
        let nics = self.0.get_mut("nics").and_then(Value::as_array_mut);
        let nics = nics.into_iter().flatten().filter_map(Value::as_object_mut);
        for (mac, nic) in macs(uuid).zip(nics) {
            if !keep_macs {
                nic.insert("mac".into(), json!(mac));
            }
            nic.shift_remove("ifname");
        }
        Ok(())
    }

    /// Gives a guest with a generation ID a new one: it tells the guest that its time has gone back, or that it was
    /// copied (xl.cfg(5), `ms_vm_genid`). xl makes one from a configuration file only, and a restore keeps what the
    /// image has (libxl_dom.c, `libxl__ms_vm_genid_set`).
    pub fn renew_generation(&mut self, new: Uuid) {
        let Some(Value::Array(id)) = self.0.pointer_mut("/b_info/type.hvm/ms_vm_genid") else {
            return;
        };
        // Zeros: it has none.
        if id.iter().any(|byte| byte.as_u64() != Some(0)) {
            *id = new.as_bytes().iter().map(|byte| json!(byte)).collect();
        }
    }

    /// Gives it another name, and changes nothing else.
    pub fn set_name(&mut self, name: &str) -> Result<(), BadConfig> {
        let info = self.0.get_mut("c_info").and_then(Value::as_object_mut);
        let info = info.ok_or_else(|| BadConfig::Missing("c_info".into()))?;
        info.insert("name".into(), json!(name));
        Ok(())
    }

    /// Makes disk `vdev` use another image. The rest of its entry does not change.
    pub fn set_image(&mut self, vdev: &str, path: &Path, format: Format) -> Result<(), BadConfig> {
        let entry = self
            .0
            .get_mut("disks")
            .and_then(Value::as_array_mut)
            .and_then(|disks| {
                disks
                    .iter_mut()
                    .find(|d| d["vdev"].as_str().is_some_and(|its| same_vdev(its, vdev)))
            })
            .ok_or_else(|| BadConfig::NoDisk(vdev.into()))?;
        let path = path.to_str().ok_or_else(|| BadConfig::Missing("UTF-8 path".into()))?;
        entry["pdev_path"] = json!(path);
        entry["format"] = json!(format.name());
        // Neither blkback nor tapdisk can serve it; libxl then chooses QEMU.
        if let (true, Some(entry)) = (format != Format::Raw, entry.as_object_mut()) {
            for (key, other) in [("backend", "phy"), ("script", "block-tap")] {
                if entry.get(key).is_some_and(|value| value == other) {
                    entry.shift_remove(key);
                }
            }
        }
        Ok(())
    }
}

/// MAC addresses for a domain's network devices: from Xen's range, 00:16:3e, whose half with the
/// highest bit unset is free for any use (xl also takes random ones of it, libxl_nic.c).
fn macs(uuid: Uuid) -> impl Iterator<Item = String> {
    // The last bytes of a version 4 UUID are random.
    let [.., a, b, c] = uuid.into_bytes();
    let first = u32::from_be_bytes([0, a, b, c]);
    (0..).map(move |number: u32| {
        let [_, a, b, c] = first.wrapping_add(number).to_be_bytes();
        format!("00:16:3e:{:02x}:{b:02x}:{c:02x}", a & 0x7f)
    })
}

/// The name of the domain that serves a device, if it is not dom0.
fn driver_domain(device: &Value) -> Option<&str> {
    let name = device.get("backend_domname")?.as_str()?;
    (!matches!(name, "" | "0" | "Domain-0")).then_some(name)
}

fn disk(entry: &Value) -> Result<Disk, BadConfig> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    // libxl writes these as 0/1 for `integer` and as true/false for `bool` fields.
    let flag = |key: &str| match entry.get(key) {
        Some(Value::Bool(value)) => *value,
        Some(value) => value.as_i64().unwrap_or(0) != 0,
        None => false,
    };
    Ok(Disk {
        vdev: text("vdev")
            .filter(|vdev| is_vdev(vdev))
            .ok_or_else(|| BadConfig::Missing("vdev of a disk".into()))?,
        path: text("pdev_path").unwrap_or_default().into(),
        // libxl omits the default, which is an unset format.
        format: text("format").as_deref().and_then(Format::parse),
        writable: flag("readwrite"),
        cdrom: flag("is_cdrom"),
        script: text("script"),
        backend_domain: driver_domain(entry).map(str::to_owned),
        by_qemu: text("backend").as_deref() == Some("qdisk"),
        by_tapback: text("backend").as_deref() == Some(TAPBACK),
    })
}

#[cfg(test)]
mod tests;
