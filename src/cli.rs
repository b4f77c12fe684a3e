//! The command line: one definition for the program, its manual pages and its completions.
//!
//! Included by build.rs as well, so it must not use the rest of the crate.

#[path = "cli/backups.rs"]
mod backups;
#[path = "cli/common.rs"]
mod common;

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueHint, value_parser};

pub use self::backups::{BackupArgs, ExportArgs, ServeArgs};
pub use self::common::Common;

/// Take and revert snapshots of whole Xen domains: memory and every disk at one instant.
///
/// There is no database. A snapshot is one memory image, which xl restore can read, plus what the
/// disks' own tools keep, such as a qcow2 snapshot or a backing file.
#[derive(Debug, Parser)]
#[command(
    name = "xl-snapshot",
    version,
    max_term_width = 80,
    after_help = "Examples:
  xl-snapshot create web1 --name before-upgrade
  xl-snapshot list --tree web1
  xl-snapshot show /var/lib/xen/snapshots/web1/before-upgrade.xlsave
  xl-snapshot revert web1/before-upgrade
  xl-snapshot export web1/before-upgrade /backup/web1

Exit status: 0 done; 1 failed, everything is as it was before; 2 wrong command
line or input file; 3 refused before any change; 4 failed, and something is left
to do (the message says what).

Environment: XL_SNAPSHOT_DIR is the directory for memory images, an absolute
path (default /var/lib/xen/snapshots). NO_COLOR, if not empty, turns off colours
and other escape sequences."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a snapshot of a running domain, or of the disks of a domain that does not run.
    Create(CreateArgs),
    /// Revert a domain to a snapshot, or create a new domain from it.
    Revert(RevertArgs),
    /// Delete snapshots, and merge disks whose base they are.
    Delete(DeleteArgs),
    /// Copy a snapshot, its memory and whole disks, into a directory that needs nothing else.
    Export(ExportArgs),
    /// List snapshots, which descends from which, and whether they can be reverted to.
    List(ListArgs),
    /// Show a snapshot, and whether it can be reverted to.
    Show(ShowArgs),
    /// Copy the disks of a domain, as they are at one moment, into a new directory.
    Backup(BackupArgs),
    /// Serve a disk of a snapshot read-only, to NBD clients such as backup programs.
    Serve(ServeArgs),
    /// Make plain memory images take less space.
    Compact(CompactArgs),
    /// Delete old snapshots of a domain: those that no rule keeps, the oldest first.
    Prune(PruneArgs),
}

/// The command line of `create`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot create web1
  xl-snapshot create web1 --name before-upgrade --description 'kernel 6.12'
  xl-snapshot create web1 -d xvda,internal -d xvdb,external -d xvdc,none
  xl-snapshot create /etc/xen/web1.cfg --dry-run
  xl-snapshot create web1 --compress zstd
  xl-snapshot create web1 --wait 600 --json --quiet
  xl-snapshot create /etc/xen/web1.cfg --record web1.record
  xl-snapshot create web1.cfg --record web1.record --disk-only --quiesce agent
  xl-snapshot create web1 --memory - | zstd | ssh backup 'cat > web1.xlsave.zst'

How to snapshot a disk, VDEV,HOW:
  internal            take a snapshot inside the qcow2 image (default for qcow2)
  external[,file=F]   freeze the image; the guest continues in a new one: a qcow2
                      overlay, or a child of a VHD that tapdisk serves (default
                      for all other images)
  lvm[,size=S]        take a snapshot of the logical volume (default for those);
                      for a thick volume, with room for S of changes (default:
                      for all changes)
  reflink[,file=F]    make an instant copy of a raw image, on a file system that
                      can share content
  none                leave the disk out

Raw images on blkback and VHDs on tapdisk cannot be switched under a running
guest. With external, the whole domain is restored from the image just written,
and is paused until that is done. Read-only disks and CD-ROMs are left out. A
writable disk that cannot be snapshotted is an error before anything changes;
leave it out with none. The same holds for drives that QEMU has in addition to
the disks of the configuration (device_model_args); VDEV is then QEMU's name for
the drive.

zstd -dc FILE | xl restore /dev/stdin restores a compressed image without this
program. A high compression level cannot keep up with Xen: the guest is paused
longer, above all with --no-live.

If you name the domain by its configuration file, the disk entries in it are
updated to name the new images. The old file is kept as FILE.bak-NAME.")]
pub struct CreateArgs {
    /// The domain: its name, number, UUID, or the path of its xl configuration file.
    pub domain: String,
    /// A file with the same settings as the options; an option overrides the file.
    #[arg(value_name = "SPEC.toml", value_hint = ValueHint::FilePath)]
    pub spec: Option<PathBuf>,
    /// Name of the snapshot [default: snap-YYYYmmdd-HHMMSS, UTC].
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub name: Option<String>,
    /// Write the memory image to FILE, or to standard output if FILE is -
    /// [default: <domain>/<name>.xlsave in XL_SNAPSHOT_DIR or /var/lib/xen/snapshots; .xlsave.zst if
    /// compressed].
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub memory: Option<PathBuf>,
    /// Compress the memory image: zstd, zstd:LEVEL (1 to 19, default 3) or none.
    #[arg(long, value_name = "HOW")]
    pub compress: Option<String>,
    /// Have the plain image share its storage with IMAGE, an image on the same file system, where pages are
    /// equal [default: the snapshot that this one descends from, or the youngest, in the same directory].
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath, conflicts_with_all = ["compress", "record"])]
    pub like: Option<PathBuf>,
    /// Choose how to snapshot one disk; the others get the default of their kind (see below).
    #[arg(short, long = "disk", value_name = "VDEV,HOW", value_hint = ValueHint::Other)]
    pub disks: Vec<String>,
    /// Copy memory while the guest runs (the default).
    #[arg(long, overrides_with = "no_live")]
    pub live: bool,
    /// Suspend the guest first, then copy its memory: a longer pause, but a smaller image.
    #[arg(long)]
    pub no_live: bool,
    /// Abort if saving memory would pause the guest longer than SECONDS (switching the disks adds to
    /// it); the guest keeps running.
    #[arg(long, value_name = "SECONDS", value_hint = ValueHint::Other)]
    pub max_pause: Option<f64>,
    /// Leave the domain paused.
    #[arg(short, long)]
    pub paused: bool,
    /// Take a snapshot without memory, and write its record to FILE. The domain must be named by its
    /// configuration file, and not run (but see --disk-only).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub record: Option<PathBuf>,
    /// Take the disks of a running domain without its memory; needs --record, and --quiesce or
    /// --crash-consistent.
    #[arg(long)]
    pub disk_only: bool,
    /// Accept a crash-consistent snapshot, as after a power cut.
    #[arg(long)]
    pub crash_consistent: bool,
    /// With --disk-only, freeze the guest's file systems while its disks are snapshotted: by QEMU's guest
    /// agent in it (agent), or by PROGRAM, an absolute path, which is called as PROGRAM freeze DOMAIN and
    /// PROGRAM thaw DOMAIN.
    #[arg(long, value_name = "agent|PROGRAM", value_hint = ValueHint::FilePath)]
    pub quiesce: Option<String>,
    /// Thaw the file systems after SECONDS, and abort if the disks are not snapshotted by then
    /// [default: 10].
    #[arg(long, value_name = "SECONDS", value_hint = ValueHint::Other)]
    pub freeze_timeout: Option<f64>,
    /// First remove what interrupted creates of this domain have left, for example after a power cut.
    #[arg(long)]
    pub clean: bool,
    /// Store TEXT in the snapshot.
    #[arg(long, value_name = "TEXT", value_hint = ValueHint::Other)]
    pub description: Option<String>,
    /// The options of the commands that change something.
    #[command(flatten)]
    pub common: Common,
}

/// The command line of `revert`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("beside").args(["clone_name", "restore_first"])))]
#[command(after_help = "Examples:
  xl-snapshot revert /var/lib/xen/snapshots/web1/before-upgrade.xlsave
  xl-snapshot revert --dry-run before-upgrade.toml
  xl-snapshot revert --wait 60 web1.xlsave.zst
  xl-snapshot revert web1.record
  xl-snapshot revert gold.xlsave --as web2 --overlay-dir /srv/clones
  xl-snapshot revert web1/before-upgrade --restore-first
  xl-snapshot revert web1/before-upgrade --restore-first --rehearse
  ssh backup 'cat web1.xlsave.zst' | xl-snapshot revert -

Everything is checked before the domain is destroyed, except the checksums of an
image that create has compressed; xl-snapshot show --verify checks those. The
snapshot stays and can be reverted to again. What the domain wrote since the
snapshot is kept, and its place is printed, unless you give --discard-current.

With --as, a new domain with its own name, UUID and MAC addresses continues from
the snapshot. The original domain and its disks are not affected. You can create
any number of them, also at the same time. Overlays, thin volumes and VHDs rest
on the snapshot, so keep it; internal snapshots and thick volumes are copied
into qcow2 images.

With --restore-first, the running domain is not touched until the new one is
whole. Then it is paused, the new one takes its name and runs, and the old one
is destroyed. This needs the memory of the domain twice, and a second image of
every disk: overlays, thin volumes, reflink copies and VHDs have one, internal
snapshots and thick volumes only with --copy. It is not possible with what two
domains cannot share: PCI and USB devices, TPMs, fixed VNC displays, SPICE,
sockets, vifname. A domain that does not run is reverted as without
--restore-first.

For a snapshot without memory, revert puts the disks back, updates the
configuration file to name them and starts the domain from it. Describe a
snapshot made by hand in a SPEC.toml with the key config.")]
pub struct RevertArgs {
    /// The snapshot: DOMAIN/NAME, its memory image (- for standard input), its record, or the SPEC.toml
    /// that names it.
    pub snapshot: PathBuf,
    /// Create a new domain NAME from the snapshot; the original domain is not affected.
    #[arg(
        long = "as",
        value_name = "NAME",
        requires = "overlay_dir",
        conflicts_with = "discard_current",
        value_hint = ValueHint::Other
    )]
    pub clone_name: Option<String>,
    /// With --as, the directory for the disks of the new domain, NAME-VDEV.qcow2 (thin logical volumes
    /// stay in their pool); required. With --restore-first, the directory for copies [default there: that of
    /// the disk's own image].
    #[arg(long, value_name = "DIR", requires = "beside", value_hint = ValueHint::DirPath)]
    pub overlay_dir: Option<PathBuf>,
    /// Restore the domain, paused, while the old one runs; then replace it. The guest is down only briefly,
    /// and a restore that fails changes nothing. Needs the domain's memory twice.
    #[arg(long)]
    pub restore_first: bool,
    /// With --restore-first, copy disks that can have a second image in no other way: those with
    /// internal snapshots, and thick logical volumes.
    #[arg(long, requires = "restore_first")]
    pub copy: bool,
    /// With --restore-first, only test the snapshot: restore the domain, paused, check that it is complete,
    /// and remove it. The running domain is not affected.
    #[arg(long, requires = "restore_first", conflicts_with_all = ["dry_run", "discard_current", "paused"])]
    pub rehearse: bool,
    /// With --as, keep the MAC addresses of the original domain instead of new ones.
    #[arg(long, requires = "clone_name")]
    pub keep_macs: bool,
    /// Leave the domain paused.
    #[arg(short, long)]
    pub paused: bool,
    /// After a successful revert, delete what the domain wrote since the snapshot.
    #[arg(long)]
    pub discard_current: bool,
    /// The options of the commands that change something.
    #[command(flatten)]
    pub common: Common,
}

/// The command line of `delete`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot delete web1/before-upgrade
  xl-snapshot delete --dry-run web1/before-upgrade
  xl-snapshot delete --memory-only web1/before-upgrade
  xl-snapshot delete web1/monday web1/tuesday
  xl-snapshot delete /srv/snapshots/gold.xlsave --flatten

Every other snapshot, and every clone, stays as good as before. Whether the
domain runs does not matter.

An external snapshot keeps its content in a file on which an overlay rests; the
two are merged. A commit writes the overlay's content into that file, which
takes its place; a stream reads that file's content into the overlay, and no
path changes. delete chooses the one that copies less data, and the plan says how
much. delete never removes a file that you made yourself. It refuses if the file
is the base of several images, as with clones, unless you give --flatten.

To finish an interrupted delete (Ctrl-C, a full disk, a power cut), run the same
command again. Until then, list shows the snapshot as being deleted, and revert
refuses it.")]
pub struct DeleteArgs {
    /// The snapshots: DOMAIN/NAME, their memory images or records. One failure does not stop the others.
    #[arg(value_name = "SNAPSHOT", required = true, value_hint = ValueHint::FilePath)]
    pub snapshots: Vec<PathBuf>,
    /// Remove the memory image only, and leave a record of the disks beside it, NAME.record.
    #[arg(long, conflicts_with = "flatten")]
    pub memory_only: bool,
    /// Copy the snapshot into each of the images whose base it is, if they are several.
    #[arg(long)]
    pub flatten: bool,
    /// The options of the commands that change something.
    #[command(flatten)]
    pub common: Common,
}

/// The command line of `list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot list
  xl-snapshot list --tree web1
  xl-snapshot list --all /srv/snapshots
  xl-snapshot list --json web1 web2
  xl-snapshot list --metrics >x.new && mv x.new xl-snapshot.prom

* marks the snapshot that the running domain continues from. ? marks the
youngest snapshot, where only the dates can tell. SIZE is the space that the
memory image takes on its file system.

list reads only the headers of images, and starts no tool but lvs. show checks
more.")]
pub struct ListArgs {
    /// A domain (its name, UUID, number or xl configuration file), or a directory of snapshots with a
    /// slash in it [default: all in XL_SNAPSHOT_DIR or /var/lib/xen/snapshots].
    #[arg(value_name = "DOMAIN|DIRECTORY")]
    pub places: Vec<String>,
    /// Draw which snapshot descends from which.
    #[arg(long, conflicts_with_all = ["json", "metrics"])]
    pub tree: bool,
    /// Also list unfinished images, copies, disk snapshots without an image, and files that no snapshot
    /// names.
    #[arg(long)]
    pub all: bool,
    /// Print the result as JSON (see xl-snapshot-json(5)).
    #[arg(long)]
    pub json: bool,
    /// Print metrics for Prometheus (node_exporter's textfile collector).
    #[arg(long, conflicts_with_all = ["json", "all"])]
    pub metrics: bool,
}

/// The command line of `show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot show /var/lib/xen/snapshots/web1/before-upgrade.xlsave
  xl-snapshot show --json before-upgrade.toml
  zstd -dc web1.xlsave.zst | xl-snapshot show -

show changes nothing. For each disk, it says whether it can still be reverted,
and if not, why.")]
pub struct ShowArgs {
    /// The snapshot: DOMAIN/NAME, its memory image (- for standard input), its record, or the SPEC.toml
    /// that names it.
    pub snapshot: PathBuf,
    /// Read the whole image, and check its checksums (plain images of earlier versions, and those that went
    /// through a pipe, have none).
    #[arg(long)]
    pub verify: bool,
    /// Print the result as JSON (see xl-snapshot-json(5)).
    #[arg(long)]
    pub json: bool,
}

/// The command line of `compact`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot compact web1/monday web1/tuesday
  xl-snapshot compact --dry-run /srv/snapshots/*.xlsave
  xl-snapshot compact --like gold.xlsave web2.xlsave

create already writes images in this form. Use compact for images of earlier
versions, and for copies that have lost their holes. Pages of zeros become holes, every page is
aligned, and checksums are added. On a file system that shares storage between
files (XFS, Btrfs), equal pages are then stored once for the image and for an
older one of its domain. Each image stays whole: xl restore reads it, and you can
delete any of them.

The new file is written beside the old one, read back, and takes its place. An
image on which xl-snapshot is working is refused.")]
pub struct CompactArgs {
    /// The images: DOMAIN/NAME, or their files. One failure does not stop the others.
    #[arg(value_name = "IMAGE", required = true, value_hint = ValueHint::FilePath)]
    pub images: Vec<PathBuf>,
    /// Share storage with this image [default: the snapshot that an image descends from, or the youngest
    /// that is older, in the same directory].
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub like: Option<PathBuf>,
    /// The options of the commands that change something.
    #[command(flatten)]
    pub common: Common,
}

/// The command line of `prune`.
#[derive(Debug, Args)]
#[command(
    override_usage = "xl-snapshot prune [OPTIONS] --keep-<PERIOD> <N>... <DOMAIN>",
    after_help = "Examples:
  xl-snapshot prune --dry-run --keep-last 3 web1
  xl-snapshot prune --keep-last 3 --keep-daily 7 --keep-weekly 4 web1
  xl-snapshot prune --prefix snap- --keep-daily 7 --json --quiet web1

Each rule keeps the newest snapshot of each of the last N hours, days, weeks
(from Monday) or months in which there are any, by UTC. A snapshot is deleted if
no rule keeps it. Snapshots that cannot be reverted to never take the place of
one that can.

The snapshot that the running domain continues from is always kept, and so is
one that a clone, or a snapshot of a clone, needs.

Only snapshots in XL_SNAPSHOT_DIR are known; see xl-snapshot list. If one cannot
be deleted, prune still deletes the others, and the exit status is 4."
)]
pub struct PruneArgs {
    /// The domain: its name, number, UUID, or the path of its xl configuration
    /// file.
    #[arg(value_name = "DOMAIN")]
    pub whose: String,
    /// Keep the last N snapshots.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub keep_last: Option<u32>,
    /// Keep one snapshot for each of the last N hours.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub keep_hourly: Option<u32>,
    /// Keep one snapshot for each of the last N days.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub keep_daily: Option<u32>,
    /// Keep one snapshot for each of the last N weeks.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub keep_weekly: Option<u32>,
    /// Keep one snapshot for each of the last N months.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub keep_monthly: Option<u32>,
    /// Count and delete only snapshots whose names begin with PREFIX, such as
    /// snap- for those that were not given a name.
    #[arg(long, value_name = "PREFIX", value_hint = ValueHint::Other)]
    pub prefix: Option<String>,
    /// The options that commands share.
    #[command(flatten)]
    pub common: Common,
}
