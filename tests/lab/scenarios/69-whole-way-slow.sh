#!/bin/bash
# The rest of the table of what a revert needs: pools, processors, memory, groups of one name; and an image that is
# the base of the running domain's by another spelling of its path is copied from, not rewritten.
# slow
. /lab/t/lib.sh
. /lab/t/table.sh

w=$LAB_WORK
xl cpupool-cpu-remove Pool-0 1
xl cpupool-create 'name="way"' 'cpus=["1"]' >/dev/null
give_back() {
	for domain in g big; do xl destroy $domain 2>/dev/null || :; done
	lab_pause 2
	xl cpupool-destroy way 2>/dev/null || :
	xl cpupool-cpu-add Pool-0 1 2>/dev/null || :
}
trap "take_back; give_back" EXIT
qcow2 a.qcow2 64M
uuid='cfg=uuid = "0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a069"'
guest_up g tick=300 "$uuid" a.qcow2 'cfg=pool = "way"
cpus = "1"'
wait_tick g 2
create g s1.xlsave --name s1 --no-live
xl destroy g
trial "the pool is gone" 3 'the processor pool way' 'xl cpupool-destroy way' \
	'xl cpupool-create name=\"way\" cpus=[\"1\"] >/dev/null'
trial "the pool has not its processor" 3 'bound to processor 1 (cpus=), and the pool way has none' \
	'xl cpupool-cpu-remove way 1' 'xl cpupool-cpu-add way 1'
free=$(xl info free_memory)
fill() {
	sed -e 's/^name.*/name = "big"/' -e '/^disk/d' -e '/^pool/d' -e '/^cpus/d' -e '/^uuid/d' -e "s/^memory.*/memory = $((free - 60))/" g.cfg >big.cfg
	xl create -q -p big.cfg
}
trial "other domains have the memory" 3 'of memory' fill 'xl destroy big'
revert g s1.xlsave

# The chain names the image by another spelling, and the image has lost its mark.
create g s2.xlsave --name s2 --no-live -d xvda,external
top=$(image_of g xvda)
xl destroy g
qemu-img rebase -q -u -f qcow2 -F qcow2 -b "$w/.//a.qcow2" "$top"
chmod u+w a.qcow2
sed -i "s|target=[^\"]*|target=$top|" g.cfg
guest_up g tick=300 "$uuid" "$top" 'cfg=pool = "way"'
wait_tick g 2
before=$(sha256sum a.qcow2)
mark g
xl-snapshot revert s1.xlsave
more_ticks g 3
not_torn g
[[ $(sha256sum a.qcow2) == "$before" ]] || fail "the base of $top was rewritten"
[[ $(image_of g xvda) != "$w/a.qcow2" ]] || fail "the guest writes to a base"
xl destroy g

# Two volume groups of one name, as when dom0 looks into a guest's disk.
vg_up twice 100M
lvcreate -qq -y -n a -L 32M twice
guest_up g tick=300 "format=raw,vdev=xvda,access=rw,target=/dev/twice/a"
wait_tick g 2
create g s1.xlsave-lvm --name s3 --no-live
mv s1.xlsave-lvm s1.xlsave
xl destroy g
first=$(losetup -n -O NAME -j twice.pv)
another() {
	vgchange -qq -an twice
	losetup -d "$first"
	truncate -s 100M other.pv
	second=$(losetup --show -f other.pv)
	vgcreate -qq twice "$second"
	lvcreate -qq -y -n a -L 32M twice
	losetup -f twice.pv
}
trial "two groups of one name" 3 '2 volume groups called twice' another 'losetup -d "$second"; vgscan -qq --cache || :'
detail "$lab_trials cases refused before anything changed; no base is rewritten by another spelling of its path"
