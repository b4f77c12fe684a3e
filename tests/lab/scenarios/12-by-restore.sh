#!/bin/bash
# A raw file on blkback beside a qcow2 one: nothing can switch blkback under a running guest, so create restores
# the domain on new disks. 16 does it with every kind of disk, and with a tool that fails.
# core
. /lab/t/lib.sh

qcow2 a.qcow2 64M
raw b.img 64M
guest_up g tick=500 a.qcow2 b.img
wait_tick g 2
first=$(domid g)
create g s1.xlsave --name s1 --no-live
[[ $(domid g) != "$first" && $(json restored <s1.xlsave.json) == true ]] || fail "it was not restored"
[[ $(image_of g xvdb) == "$LAB_WORK/g-xvdb.after-s1.qcow2" ]] || fail "xvdb is $(image_of g xvdb)"
[[ $(boot_id g) == "${lab_boot[s1.xlsave]}" ]] || fail "the guest has booted"
base=$(sha256sum b.img)
cell "raw, blkback" pv "by restore" ok
revert g s1.xlsave
cell "raw, blkback" pv revert ok
xl destroy g
[[ $(sha256sum b.img) == "$base" ]] || fail "the base was written to"
qemu_img_check_all
detail "pause $(ms "$(json pause_ms <s1.xlsave.json)") ms, the restore included"
