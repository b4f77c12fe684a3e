#!/bin/bash
# export: a directory of a running guest's snapshot with internal, external, thin and thick disks. The guest runs on, a
# new domain continues from the directory alone, also when the snapshot and its disks are gone; killed, in a pipe, refused.
# slow
. /lab/t/lib.sh
. /lab/t/gold.sh

export XL_SNAPSHOT_DIR=$LAB_WORK/kept
mkdir -p kept/g new
qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
vg_up vg0 400M
lvcreate -qq -y --type thin-pool -n pool -L 100M vg0
lvcreate -qq -y -V 64M -n thin --thinpool pool vg0
lvcreate -qq -y -n thick -L 64M vg0
guest_up g tick=300 mem=96 a.qcow2 b.qcow2 /dev/vg0/thin /dev/vg0/thick
wait_tick g 2
create g kept/g/s1.xlsave --name s1 --no-live -d xvdb,external

# ---- a plan changes nothing; what cannot be is refused

before=$(volumes vg0; image_of g xvda; image_of g xvdb; qemu-img snapshot -U -l a.qcow2)
xl-snapshot export --dry-run g/s1 x >plan.out
[[ $(grep -c 'qemu-img convert' plan.out) == 4 && ! -e x && ! -e x.partial ]] || fail "$(<plan.out)"
refused 3 'exists' xl-snapshot export g/s1 new
refused 3 'No such file' xl-snapshot export g/s1 nowhere/x
refused 2 '--work-dir' xl-snapshot export g/s1 x --work-dir new

# ---- beside the running guest

mark g
xl-snapshot export -v g/s1 x --json >x.json
[[ $(json image <x.json) == s1.xlsave.zst && $(json memory <x.json) == true ]] || fail "$(<x.json)"
[[ $(cd x && echo *) == 's1.xlsave.zst xvda.qcow2 xvdb.qcow2 xvdc.qcow2 xvdd.qcow2' ]] || fail "$(ls -la x)"
[[ $(stat -c %a x x/xvda.qcow2 x/s1.xlsave.zst | xargs) == '700 400 600' ]] || fail "$(ls -la x)"
more_ticks g 2
not_torn g
xl-snapshot show x/s1.xlsave.zst --verify >show.out || fail "$(<show.out)"
grep -q 'revert --as' show.out || fail "$(<show.out)"
refused 3 'copies of the disks' xl-snapshot revert x/s1.xlsave.zst
refused 3 'it is an export' xl-snapshot delete x/s1.xlsave.zst

# ---- killed: the guard removes what there is; while it runs, nobody deletes the snapshot

xl-snapshot export -q g/s1 k >k.out 2>&1 &
victim=$!
for ((i = 0; i < 200; i++)); do [[ ! -e k.partial/xvda.qcow2 ]] || break; lab_pause 0.05; done
refused 3 'busy' xl-snapshot delete g/s1
kill -KILL $victim
wait $victim || :
for ((i = 0; i < 200; i++)); do pgrep xl-snap-guard >/dev/null || break; lab_pause; done
[[ ! -e k && ! -e k.partial ]] || fail "left: $(ls -a k k.partial)"
xl-snapshot export -q --no-memory g/s1 - --work-dir "$LAB_WORK" | tar -x -C new
[[ -e new/g-s1/s1.record && -e new/g-s1/xvdd.qcow2 ]] || fail "$(ls -la new)"
qemu-img compare -q -f qcow2 -F qcow2 x/xvdc.qcow2 new/g-s1/xvdc.qcow2 || fail "two exports differ"

# ---- on a host that has nothing else

mv x y
now=$(volumes vg0; image_of g xvda; image_of g xvdb; qemu-img snapshot -U -l a.qcow2)
[[ $now == "$before" ]] || fail "the export has changed something: $now"
xl destroy g
rm -f kept/g/* ./*.qcow2
lvremove -qqy vg0
xl-snapshot revert -v y/s1.xlsave.zst --as c --overlay-dir new >c.out
lab_from[y]=${lab_from[kept/g/s1.xlsave]} lab_until[y]=${lab_until[kept/g/s1.xlsave]} lab_boot[y]=${lab_boot[kept/g/s1.xlsave]}
went_on c y
[[ $(image_of c xvdc) == "$LAB_WORK/new/c-xvdc.qcow2" ]] || fail "$(xl list -l c)"
xl-snapshot show y/s1.xlsave.zst >show.out || fail "$(<show.out)"
xl destroy c
qemu_img_check_all strict
detail "$(du -sh y | cut -f 1) for 4 disks and memory; a domain from it when all else was gone"
