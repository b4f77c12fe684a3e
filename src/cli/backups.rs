//! The command lines of `export`, `backup` and `serve`.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueHint};

use super::common::Common;

/// The command line of `export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot export web1/before-upgrade /backup/web1-before-upgrade
  xl-snapshot export --no-memory web1/before-upgrade /backup/web1-disks
  xl-snapshot export --dry-run web1/before-upgrade /backup/web1
  xl-snapshot export web1/monday - | ssh backup 'tar -x -C /srv/backup'

The directory has the memory image, compressed, the domain's xl configuration
file, if it is known, and each disk as one qcow2 image, as it was at the
snapshot. It can be moved, and copied to other hosts (keep the files' times:
cp -a, rsync -a, tar). There, revert --as creates a new domain from it, and
qemu-img, qemu-nbd and guestmount read the disks.

The domain may run. Until the export has ended, its snapshots cannot be deleted,
and no snapshot of it is taken; other commands wait for that with --wait.

An export that fails or is interrupted leaves nothing. After a power cut,
DIRECTORY.partial may be left: the same command removes it first.")]
pub struct ExportArgs {
    /// The snapshot: DOMAIN/NAME, its memory image, its record, or the SPEC.toml that names it.
    pub snapshot: PathBuf,
    /// The directory, which is made, or - for a tar archive on standard output.
    #[arg(value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Leave the memory out: the disks and a record of them.
    #[arg(long)]
    pub no_memory: bool,
    /// For an archive, make each file in DIR first, one at a time [default: /var/tmp].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub work_dir: Option<PathBuf>,
    /// The options of the commands that change something.
    #[command(flatten)]
    pub common: Common,
}

/// The command line of `backup`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot backup /etc/xen/web1.cfg /backup --quiesce agent
  xl-snapshot backup /etc/xen/web1.cfg /backup --crash-consistent -d xvdb,none
  xl-snapshot backup --dry-run /etc/xen/web1.cfg /backup --quiesce agent
  xl-snapshot backup -q --json web1.cfg /backup --quiesce /usr/local/sbin/freeze

backup takes a snapshot of the disks without the memory, exports it to
DIRECTORY/DOMAIN-NAME, and deletes the snapshot. The guest keeps running. If the
export fails, backup deletes the snapshot too, and nothing is left. NAME is
backup-YYYYmmdd-HHMMSS, UTC.

Disks get external snapshots, logical volumes their own. A raw image on blkback
cannot be switched under a running guest: take -d VDEV,reflink where its file
system can share content.

The next backup first removes the leftovers of an interrupted one, for example
after a power cut. It does not remove older backups.")]
pub struct BackupArgs {
    /// The domain: the path of its xl configuration file (a running one also needs that, because its
    /// disk entries are kept up to date).
    pub domain: String,
    /// The directory in which the backup becomes a new one.
    #[arg(value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Freeze the guest's file systems while its disks are snapshotted, as create does: by QEMU's guest
    /// agent (agent), or by PROGRAM.
    #[arg(long, value_name = "agent|PROGRAM", conflicts_with = "crash_consistent", value_hint = ValueHint::FilePath)]
    pub quiesce: Option<String>,
    /// Thaw the file systems after SECONDS, and abort if the disks are not snapshotted by then
    /// [default: 10].
    #[arg(long, value_name = "SECONDS", requires = "quiesce", value_hint = ValueHint::Other)]
    pub freeze_timeout: Option<f64>,
    /// Accept a crash-consistent backup, as after a power cut.
    #[arg(long)]
    pub crash_consistent: bool,
    /// Choose how to snapshot one disk, as with create; none leaves it out of the backup.
    #[arg(short, long = "disk", value_name = "VDEV,HOW", value_hint = ValueHint::Other)]
    pub disks: Vec<String>,
    /// The options of the commands that change something.
    #[command(flatten)]
    pub common: Common,
}

/// The command line of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xl-snapshot serve web1/nightly xvda --socket /run/web1-xvda.sock
  xl-snapshot serve web1/nightly xvda --socket /run/web1-xvda.sock --once
  xl-snapshot serve --json web1.record xvdb --socket /run/web1-xvdb.sock

Clients read the disk as it was at the snapshot. The guest keeps running:
  nbdinfo 'nbd+unix:///?socket=/run/web1-xvda.sock'
  nbdcopy 'nbd+unix:///?socket=/run/web1-xvda.sock' /backup/web1-xvda.img
  nbd-client -unix /run/web1-xvda.sock /dev/nbd0 -readonly

The socket is there once clients can connect, and is removed at the end. Only
root can connect to it. Nothing is changed, and no client can write.

While a disk is served, its snapshot cannot be deleted, and an internal or
logical volume snapshot cannot be reverted to: those commands refuse, and say
why. The guest, and new snapshots of it, are not affected.")]
pub struct ServeArgs {
    /// The snapshot: DOMAIN/NAME, its memory image, its record, or the SPEC.toml that names it.
    pub snapshot: PathBuf,
    /// The disk, by the guest's name of it, such as xvda.
    #[arg(value_name = "VDEV", value_hint = ValueHint::Other)]
    pub vdev: String,
    /// Serve on the Unix socket PATH, in a directory that only root can write to.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,
    /// End when the first client has disconnected [default: at SIGTERM or SIGINT].
    #[arg(long)]
    pub once: bool,
    /// Give the export a name [default: empty, as NBD clients expect].
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, value_hint = ValueHint::Other)]
    pub export_name: String,
    /// Wait up to SECONDS for another xl-snapshot that is working on the domain [default: refuse at
    /// once].
    #[arg(long, value_name = "SECONDS", value_hint = ValueHint::Other)]
    pub wait: Option<u32>,
    /// Print what is served, and where, as JSON (see xl-snapshot-json(5)).
    #[arg(long)]
    pub json: bool,
    /// Print only errors and the result.
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print how qemu-nbd is started.
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}
