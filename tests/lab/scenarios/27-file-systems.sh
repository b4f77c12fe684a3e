#!/bin/bash
# Images and overlays on file systems that lack what ext4 has: NFS (no RENAME_NOREPLACE), sshfs (no hard
# links either), XFS and Btrfs. Where no file can get its name, create is refused and undone.
# timeout: 1500
# slow
. /lab/t/lib.sh

nfs_up() {
	mkdir -p export nfs /run/rpcbind
	mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
	pgrep -x rpcbind >/dev/null || rpcbind -w
	# Not tmpfs, which has no file handles that outlive a boot; the scenario's directory is on ext4.
	exportfs -o rw,no_root_squash,no_subtree_check,fsid=7,insecure 127.0.0.1:"$PWD/export"
	# Nobody has locks to claim again.
	echo 10 >/proc/fs/nfsd/nfsv4gracetime
	echo 10 >/proc/fs/nfsd/nfsv4leasetime
	rpc.nfsd -N 3 2
	rpc.mountd
	timeout 60 mount -t nfs4 -o vers=4.2,soft,timeo=50 "127.0.0.1:$PWD/export" nfs
}

sshfs_up() {
	mkdir -p remote ssh
	socat TCP-LISTEN:2022,bind=127.0.0.1,reuseaddr,fork EXEC:/usr/lib/openssh/sftp-server &
	for ((i = 0; i < 50; i++)); do
		sshfs -o directport=2022,disable_hardlink "127.0.0.1:$PWD/remote" "$PWD/ssh" && return
		lab_pause
	done
	fail "sshfs does not come up"
}

btrfs_up() {
	truncate -s 400M btr.fs
	mkfs.btrfs -q btr.fs
	mkdir btr
	mount -o loop btr.fs btr
}

nfs_down() {
	cd /
	umount -f -l "$LAB_WORK/nfs" || :
	fusermount3 -u -z "$LAB_WORK/ssh" || :
	rpc.nfsd 0 || :
	pkill -x rpc.mountd || :
	exportfs -ua || :
}
trap nfs_down EXIT

modprobe -a nfs nfsd fuse btrfs
nfs_up
sshfs_up
xfs_up xfs
btrfs_up

# What they lack, shown without us.
python3 - nfs ssh <<'END' || fail "these file systems lack nothing"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for directory in sys.argv[1:]:
    one, other = os.path.join(directory, "one"), os.path.join(directory, "other")
    open(one, "w").close()
    assert libc.renameat2(-100, one.encode(), -100, other.encode(), 1) == -1, directory
    assert ctypes.get_errno() == errno.EINVAL
    try:
        os.link(one, other)
        assert directory == "nfs"
        os.unlink(other)
    except OSError as error:
        assert directory == "ssh", error
    os.unlink(one)
END

qcow2 a.qcow2 64M
qcow2 btr/c.qcow2 32M
guest_up g type=pv a.qcow2 btr/c.qcow2
wait_tick g 2
for place in nfs ssh xfs btr; do
	create g "$place/$place.xlsave" --name "$place" -d xvdb,external
	create g "$place/z$place.xlsave.zst" --name "z$place" --compress zstd:1
	[[ -z $(find "$place" -name '*.partial' -o -name '.xl-snapshot*') ]] || fail "left in $place: $(ls -A "$place")"
	[[ $(stat -c %a "$place/$place.xlsave") == 600 ]] || fail "the mode of $place/$place.xlsave"
done
for place in ssh nfs btr xfs; do
	revert g "$place/$place.xlsave"
done
revert g nfs/znfs.xlsave.zst

# The same with disks on them.
xl destroy g
gone g
qcow2 nfs/d.qcow2 32M
raw xfs/f.img 32M
guest_up h type=pv nfs/d.qcow2 "format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target=$PWD/xfs/f.img"
wait_tick h 2
create h nfs/all.xlsave --name all -d xvda,external
[[ $(stat -c %a nfs/d.qcow2) == 444 ]] || fail "the base on NFS is not marked"
revert h nfs/all.xlsave

# A record on a file system without links, of disks on NFS.
xl destroy h
gone h
expect_exit 0 xl-snapshot create "$PWD/h.cfg" --record ssh/h.record --name off
[[ -z $(find ssh -name '*.partial' -o -name '.xl-snapshot*') ]] || fail "left: $(ls -A ssh)"
expect_exit 0 xl-snapshot show ssh/h.record

# A file system without permissions: refused, undone, before the memory is saved.
guest_up i type=pv a.qcow2
wait_tick i 2
truncate -s 300M fat.fs
mkfs.vfat fat.fs >/dev/null
modprobe -a vfat nls_ascii nls_cp437
mkdir fat
mount -o loop fat.fs fat
before=$(stand i)
refused 1 "fat/x.xlsave" xl-snapshot create i --memory fat/x.xlsave --name x
unharmed i "$before"
[[ -z $(ls -A fat) ]] || fail "left: $(ls -A fat)"
detail "NFS, sshfs without links, XFS, Btrfs; vfat refused"
