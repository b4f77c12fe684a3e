#!/bin/bash
# A raw file on a loop device whose length is no multiple of a sector: the guest sees as many sectors after the
# snapshot, a revert and in a new domain as before. So it does if the file grew while it ran, and if the snapshot
# was taken by an earlier version, which recorded the length of the file. qcow2 with its data elsewhere is refused.
# slow
. /lab/t/lib.sh

truncate -s 67000000 odd.img
raw grown.img 32M
guest_up g tick=300 odd.img grown.img
wait_tick g 2
sectors() { xenstore-ls -f "/local/domain/0/backend" | sed -n "s|.*/$(domid "$1")/$2/sectors = \"\(.*\)\"|\1|p"; }
[[ $(sectors g 51712) == 130859 ]] || fail "the loop device has $(sectors g 51712) sectors"
truncate -s 40M grown.img
create g s1.xlsave --name s1
[[ $(sectors g 51712) == 130859 ]] || fail "$(sectors g 51712) sectors after the snapshot"
[[ $(sectors g 51728) == 65536 ]] || fail "$(sectors g 51728) sectors of the file that grew"
xl-snapshot show s1.xlsave | grep -q 'can be reverted to' || fail "it cannot be reverted to"
revert g s1.xlsave
[[ $(sectors g 51712) == 130859 ]] || fail "$(sectors g 51712) sectors after the revert"
[[ $(sectors g 51728) == 65536 ]]

# As an earlier version recorded it.
sed 's/virtual_size = 66999808/virtual_size = 67000000/' s1.xlsave >old.xlsave
cmp -s s1.xlsave old.xlsave && fail "the record has no such size"
mark g
xl-snapshot revert old.xlsave
more_ticks g 3
not_torn g
[[ $(sectors g 51712) == 130859 ]] || fail "$(sectors g 51712) sectors after the revert to an old record"
mkdir clones
xl-snapshot revert old.xlsave --as h --overlay-dir "$LAB_WORK/clones"
more_ticks h 2
[[ $(sectors h 51712) == 130859 ]] || fail "$(sectors h 51712) sectors in the new domain"
xl destroy h
xl destroy g

# Where the file is not all of the disk.
qemu-img create -q -f qcow2 -o data_file=d.raw,data_file_raw=on d.qcow2 32M
qcow2 a.qcow2 32M
guest_up k tick=300 a.qcow2 d.qcow2
wait_tick k 2
before=$(stand k)
for how in internal external; do
	refused 3 'its data is in another file' xl-snapshot create k --name s1 --memory k.xlsave -d xvdb,$how
done
unharmed k "$before"
xl destroy k
qemu_img_check_all
detail "130859 sectors before and after, data_file refused"
