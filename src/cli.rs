//! The command line: one definition for the program, its manual pages and its completions.
//!
//! Included by build.rs as well, so it must not use the rest of the crate.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

/// Take and revert snapshots of whole Xen domains: memory and every disk at one instant.
///
/// There is no database: a snapshot is one memory image, readable by xl restore, and what the disks'
/// own tools keep of them (a qcow2 snapshot, a backing file).
#[derive(Debug, Parser)]
#[command(
    name = "xl-snapshot",
    version,
    max_term_width = 100,
    after_help = "Examples:
  xl-snapshot create web1 --name before-upgrade
  xl-snapshot show /var/lib/xen/snapshots/web1/before-upgrade.xlsave
  xl-snapshot revert /var/lib/xen/snapshots/web1/before-upgrade.xlsave

Exit status: 0 done; 1 failed, everything as before; 2 usage or bad input; 3 refused before any
change; 4 failed and something is left to do (it says what).

Environment: XL_SNAPSHOT_DIR is the directory of memory images instead of /var/lib/xen/snapshots (an
absolute path); NO_COLOR, if not empty, keeps colours and other escape sequences away."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Snapshot a running domain, which goes on; or the disks of one that does not run.
    Create(CreateArgs),
    /// Put a domain back to a snapshot, which stays as it is.
    Revert(RevertArgs),
    /// Show a snapshot and the state of its disks now.
    Show(ShowArgs),
}

/// What `create` takes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot create web1
  xl-snapshot create web1 --name before-upgrade --description 'kernel 6.1 to 6.12'
  xl-snapshot create web1 -d xvda,internal -d xvdb,external -d xvdc,none
  xl-snapshot create /etc/xen/web1.cfg --dry-run
  xl-snapshot create web1 --compress zstd
  xl-snapshot create web1 --wait 600 --json --quiet
  xl-snapshot create /etc/xen/web1.cfg --record web1.record
  xl-snapshot create web1 --memory - | zstd | ssh backup 'cat > web1.xlsave.zst'

How a disk can be snapshotted, VDEV,HOW:
  internal            inside of its qcow2 image (the default for qcow2)
  external[,file=F]   the image is frozen, the guest goes on in a new one: a qcow2 overlay, or a
                      child of a VHD that tapdisk serves (the default for all other images)
  lvm[,size=S]        a snapshot of the logical volume (the default for those); a thick one has
                      room for S of changes, for all of them if nothing is said
  reflink[,file=F]    an instant copy of a raw image, where the file system can share content
  none                not at all

Raw images on blkback and VHDs on tapdisk cannot be switched under a running guest: with external,
the whole domain is restored from the image just written, and stands still for as long as that
takes. Read-only disks and CD-ROMs are left out. A writable disk that cannot be snapshotted is an
error before anything changes; leave it out with none. So is a drive that QEMU has beside the disks of
the configuration (device_model_args): VDEV is QEMU's name of it then.

zstd -dc FILE | xl restore /dev/stdin reads a compressed image without this program. A high level
cannot keep up with Xen: the guest stands still for longer, above all if it is not saved live.

If the domain is named by its configuration file, the disk entries there are made to name the new
images; the file as it was stays as FILE.bak-NAME.")]
pub struct CreateArgs {
    /// The domain: name, number, UUID or the path of its xl configuration file.
    pub domain: String,
    /// A file that says what the options say; an option wins over it.
    #[arg(value_name = "SPEC.toml", value_hint = ValueHint::FilePath)]
    pub spec: Option<PathBuf>,
    /// The snapshot's name [default: snap-YYYYmmdd-HHMMSS, UTC].
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub name: Option<String>,
    /// The memory image, - for standard output
    /// [default: <domain>/<name>.xlsave in XL_SNAPSHOT_DIR or /var/lib/xen/snapshots, .xlsave.zst if
    /// compressed].
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub memory: Option<PathBuf>,
    /// Compress the memory image: zstd, zstd:LEVEL (1 to 19, 3 if not said) or none.
    #[arg(long, value_name = "HOW")]
    pub compress: Option<String>,
    /// How to snapshot one disk; those not named get the default of their kind (see below).
    #[arg(short, long = "disk", value_name = "VDEV,HOW", value_hint = ValueHint::Other)]
    pub disks: Vec<String>,
    /// Copy memory while the guest runs (the default).
    #[arg(long, overrides_with = "no_live")]
    pub live: bool,
    /// Suspend first and copy then: a longer pause, a smaller image.
    #[arg(long)]
    pub no_live: bool,
    /// Give up, and let the guest go on as it was, rather than let it stand still for longer while its
    /// memory is saved; switching the disks comes on top.
    #[arg(long, value_name = "SECONDS", value_hint = ValueHint::Other)]
    pub max_pause: Option<f64>,
    /// Leave the domain paused.
    #[arg(short, long)]
    pub paused: bool,
    /// Take the disks without the memory, and write down here which they are: of a domain that does not
    /// run, named by its configuration file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub record: Option<PathBuf>,
    /// Take the disks of a running domain without its memory; needs --crash-consistent and --record.
    #[arg(long)]
    pub disk_only: bool,
    /// What a power cut would leave of the disks is good enough.
    #[arg(long)]
    pub crash_consistent: bool,
    /// First remove what earlier creates of the domain left that were cut short (a power cut).
    #[arg(long)]
    pub clean: bool,
    /// Words that go into the snapshot.
    #[arg(long, value_name = "TEXT", value_hint = ValueHint::Other)]
    pub description: Option<String>,
    /// How to run and what to print.
    #[command(flatten)]
    pub common: Common,
}

/// What `revert` takes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot revert /var/lib/xen/snapshots/web1/before-upgrade.xlsave
  xl-snapshot revert --dry-run before-upgrade.toml
  xl-snapshot revert --wait 60 web1.xlsave.zst
  xl-snapshot revert web1.record
  xl-snapshot revert gold.xlsave --as web2 --overlay-dir /srv/clones
  ssh backup 'cat web1.xlsave.zst' | xl-snapshot revert -

Everything is checked before the domain is destroyed, but for the checksums of an image that create
has compressed: xl-snapshot show --verify reads all of it. The snapshot can be reverted to again.
What the domain wrote since is kept, and its place is printed, unless --discard-current is given.

With --as, a new domain with its own name, UUID and MAC addresses goes on from the snapshot; that of
the snapshot and its disks are not touched. Any number of them can be made, also at the same time.
Overlays, thin volumes and VHDs rest on the snapshot, which must stay; internal snapshots and thick
volumes are copied into qcow2 images.

A snapshot without memory is reverted to by putting the disks back and starting the domain from its
configuration file, which names them then. One made by hand is told by a SPEC.toml with config.")]
pub struct RevertArgs {
    /// The snapshot: its memory image, - for standard input, its record, or the SPEC.toml that named
    /// it.
    pub snapshot: PathBuf,
    /// Make a new domain of that name from the snapshot, beside that of the snapshot, which goes on.
    #[arg(
        long = "as",
        value_name = "NAME",
        requires = "overlay_dir",
        conflicts_with = "discard_current",
        value_hint = ValueHint::Other
    )]
    pub clone_name: Option<String>,
    /// Where the disks of the new domain go: NAME-VDEV.qcow2 (thin logical volumes stay in their pool).
    #[arg(long, value_name = "DIR", requires = "clone_name", value_hint = ValueHint::DirPath)]
    pub overlay_dir: Option<PathBuf>,
    /// Give the new domain the MAC addresses of the old one, not new ones.
    #[arg(long, requires = "clone_name")]
    pub keep_macs: bool,
    /// Leave the domain paused.
    #[arg(short, long)]
    pub paused: bool,
    /// Delete what the domain wrote since the snapshot, once the revert has succeeded.
    #[arg(long)]
    pub discard_current: bool,
    /// How to run and what to print.
    #[command(flatten)]
    pub common: Common,
}

/// What `show` takes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot show /var/lib/xen/snapshots/web1/before-upgrade.xlsave
  xl-snapshot show --json before-upgrade.toml
  zstd -dc web1.xlsave.zst | xl-snapshot show -

Nothing is changed. It says of each disk whether it can still be put back, and if not, why.")]
pub struct ShowArgs {
    /// The snapshot: its memory image, - for standard input, its record, or the SPEC.toml that named
    /// it.
    pub snapshot: PathBuf,
    /// Read the whole image; a compressed one has checksums, a plain one has not.
    #[arg(long)]
    pub verify: bool,
    /// Print the result as JSON, see xl-snapshot-json(5).
    #[arg(long)]
    pub json: bool,
}

/// What `create` and `revert` share.
#[derive(Debug, Args)]
pub struct Common {
    /// Print the plan and change nothing.
    #[arg(short = 'N', long)]
    pub dry_run: bool,
    /// Wait so long for another xl-snapshot that works on the domain; without it, refuse at once.
    #[arg(long, value_name = "SECONDS", value_hint = ValueHint::Other)]
    pub wait: Option<u32>,
    /// Print the result as JSON, see xl-snapshot-json(5).
    #[arg(long)]
    pub json: bool,
    /// Print errors only, and the result.
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print each step and its time; twice: libxl's words too.
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}
