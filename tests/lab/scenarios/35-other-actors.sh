#!/bin/bash
# Others act on the domain while a snapshot is taken: a second of us, xl save, xl rename, xl
# block-attach, xl destroy, and a kill -9 of the program that writes the memory.
. /lab/t/lib.sh

w=$LAB_WORK
for disk in a b c d; do qcow2 $disk.qcow2 32M; done
guest_up g mem=96 tick=300 a.qcow2 b.qcow2
wait_tick g 2
create g s0.xlsave --name s0 --no-live
before=$(stand g)
snap=(--name s1 --no-live -d xvdb,external)

# A second of us is refused at once and told who is first. Then the first fails.
hold_create g s1.xlsave "${snap[@]}"
begin=$SECONDS
refused 3 "create s1 (process $create_pid) has it" xl-snapshot create g --name s2 --memory s2.xlsave --no-live
refused 3 "create s1 (process $create_pid) has it" xl-snapshot revert s0.xlsave
((SECONDS - begin < 15)) || fail "it took $((SECONDS - begin)) s to refuse two"
kill -KILL "$helper_pid"
let_create 1 'save/restore helper' 'Killed'
unharmed g "$before"

# A disk is plugged in, which the snapshot would not have: it cannot be one of the whole domain. The
# disk must stay in libxl's configuration, which a reboot follows.
hold_create g plug.xlsave --name plug --no-live
xl block-attach g "format=qcow2,vdev=xvdd,access=rw,target=$w/d.qcow2"
let_create 1 'changed'
[[ $(image_of g xvdd) == "$w/d.qcow2" ]] || fail "libxl has forgotten xvdd"
xl block-detach g xvdd
for ((i = 0; i < 30; i++)); do [[ -n $(image_of g xvdd) ]] || break; lab_pause; done
more_ticks g 3
not_torn g

# xl saves it when we have begun, and has read its configuration: we give up, and its image is good.
hold_create g s1.xlsave --name s1 --no-live -d xvdb,external
xl save -c g plain.out &
lab_pause 3
let_create 1 'begun to save or migrate the domain (process '
wait $!
# Not its xl process: before Xen 4.20, `xl save -c` ends that.
more_ticks g 3
not_torn g
[[ -z $(ls -- *after-s1* s1.xlsave* 2>/dev/null) ]] || fail "left: $(ls)"
! grep -q after-s1 plain.out || fail "the image names an overlay that is not there"
PYTHONPATH=/lab/xen/lib/python /lab/xen/bin/verify-stream-v2 -q -f xl -i plain.out

# We begin when xl is saving it.
xl save -c g plain.out &
until other=$(pgrep -P $! -f libxl-save-helper) && (($(stat -c %s plain.out) > 10000000)); do :; done
kill -STOP "$other"
refused 3 'suspended' xl-snapshot create g --name s2 --memory s2.xlsave --no-live
kill -CONT "$other"
wait $!
more_ticks g 3
not_torn g
create g s1.xlsave --name s1 --no-live
revert g s1.xlsave

# It is renamed and another domain takes its name: the snapshot is of the domain it began with, and
# spoils the configuration of neither.
sed -e "s|^disk.*|disk = [\"format=qcow2,vdev=xvda,access=rw,target=$w/c.qcow2\"]|" g.cfg >other.cfg
hold_create g s2.xlsave --name s2 --no-live -d xvdb,external
xl rename g h
xl create -q -p other.cfg
rc=0
kill -CONT "$helper_pid"
wait "$create_pid" || rc=$?
cat errors.out >&2
((rc <= 1)) || fail "exit status $rc: $(<errors.out)"
xl list -l h >h.out
[[ $(awk -F'"' '$2 == "name" {print $4; exit}' h.out) == h ]] || fail "libxl's configuration has the old name"
if ((rc == 0)); then at=$w/g-xvdb.after-s2.qcow2; else at=$w/b.qcow2; fi
[[ $(image_of h xvdb) == "$at" ]] || fail "xvdb of h is $(image_of h xvdb)"
[[ $(image_of g xvda) == "$w/c.qcow2" ]] || fail "the other g has xvda $(image_of g xvda)"
((rc == 1)) || refused 3 'belongs to another domain' xl-snapshot revert s2.xlsave
xl destroy g
xl rename h g
more_ticks g 3
not_torn g

# It is destroyed.
files() { find . -type f ! -name '*.out' -printf '%p %m\n' | sort; }
before=$(files)
id=$(domid g)
hold_create g s3.xlsave --name s3 --no-live -d xvdb,external
xl destroy g
let_create 1 'destroyed'
[[ $(files) == "$before" ]] || fail "left: $(diff <(echo "$before") <(files) | grep '^[<>]' | xargs)"
for ((i = 0; i < 30; i++)); do xl list "$id" >/dev/null 2>&1 || break; lab_pause; done
! xl list "$id" || fail "the domain is still there"
for key in "/local/domain/$id" "/libxl/$id"; do
	! xenstore-exists "$key" || fail "left in xenstore: $(xenstore-ls -f "$key" | head -n 3 | xargs)"
done
[[ -z $(ls /var/lib/xen | grep -e "\.$id\." || :) ]] || fail "libxl's data of the domain is left"
qemu_img_check_all

detail "second of us, xl save, rename, block-attach, destroy, kill -9 of the helper"
