#!/bin/bash
# A raw file on blkback and a VHD on tapdisk: nothing can switch them under a running guest, so the
# domain is restored on the new disks, and all others with it.
# slow
. /lab/t/kinds.sh

vg_up vg0 800M
lvcreate -qq -y --type thin-pool -n pool -L 64M vg0
lvcreate -qq -y -V 64M -n thin --thinpool pool vg0
lvcreate -qq -y -n thick -L 64M vg0
qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
raw e.img 64M
raw cd.iso 1M
vhd-util create -n "$LAB_WORK/f.vhd" -s 64
w=$LAB_WORK
guest_up g tick=500 a.qcow2 b.qcow2 /dev/vg0/thin /dev/vg0/thick e.img \
	"script=block-tap,vdev=xvdf,access=rw,target=vhd:$w/f.vhd" \
	"format=raw,vdev=xvdh,access=ro,devtype=cdrom,target=$w/cd.iso"
wait_tick g 2
first=$(domid g)

# In a pipe the image cannot be restored from.
refused 3 'must be restored from the image' xl-snapshot create g --memory - --no-live

# vhd-util fails, so nothing of the others remains and the guest goes on.
state() { find . -name '*.qcow2' -o -name '*.vhd' -o -name '*.xlsave*'; volumes vg0; qemu-img snapshot -U -l a.qcow2; }
before=$(state)
echo 'no space left on device' >/run/vhd-util.fail
refused 1 'no space left on device' xl-snapshot create g --name s1 --memory s1.xlsave --no-live -d xvdb,external
rm /run/vhd-util.fail
[[ $(state) == "$before" ]] || fail "something is left: $(diff <(echo "$before") <(state))"
more_ticks g 2
not_torn g
[[ $(domid g) == "$first" ]] || fail "it was restored although nothing was snapshotted"

create g s1.xlsave --name s1 --no-live -d xvdb,external
[[ $(domid g) != "$first" ]] || fail "it was not restored"
[[ $(json restored <s1.xlsave.json) == true && $(json domid <s1.xlsave.json) == $(domid g) ]] ||
	fail "the report does not say that it was restored"
[[ $(image_of g xvde) == "$w/g-xvde.after-s1.qcow2" ]] || fail "xvde is $(image_of g xvde)"
[[ $(image_of g xvdf) == "vhd:$w/g-xvdf.after-s1.vhd" ]] || fail "xvdf is $(image_of g xvdf)"
[[ $(boot_id g) == "${lab_boot[s1.xlsave]}" ]] || fail "the guest has booted"
bases=$(sha256sum e.img f.vhd)
for kind in internal external thin thick "raw, blkback" "VHD, tapdisk"; do cell "$kind" pv "by restore" ok; done
xl destroy g
revert g s1.xlsave
for kind in "raw, blkback" "VHD, tapdisk"; do
	cell "$kind" pv "when gone" ok
done
# A second one: the raw file has an overlay by now, which QEMU can switch; the VHD gets a grandchild.
create g s2.xlsave --name s2 --no-live
revert g s2.xlsave
for kind in "raw, blkback" "VHD, tapdisk"; do cell "$kind" pv revert ok; done
xl destroy g
[[ $(sha256sum e.img f.vhd) == "$bases" ]] || fail "a base was written to"
qemu_img_check_all
lvm_check vg0
for vhd in *.vhd; do
	vhdiinfo "$vhd" >>vhd.info || fail "vhdiinfo of $vhd"
	vhd-util check -n "$w/$vhd" || fail "vhd-util check of $vhd"
done
grep -q 'Parent filename.*f.vhd' vhd.info || fail "no VHD names its parent"

# A VHD that was written to since is noticed.
touch f.vhd
refused 3 'was written to since' xl-snapshot revert s1.xlsave
detail "pause $(ms "$(json pause_ms <s1.xlsave.json)") ms, the restore included"
