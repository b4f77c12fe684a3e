#!/bin/bash
# revert --restore-first: the guest is back at once, as after a plain revert, and what follows works. A
# rehearsal, a refusal and a restore that fails are not noticed by the running guest.
. /lab/t/lib.sh
. /lab/t/restore-first.sh

ip link show xenbr0 >/dev/null 2>&1 || ip link add xenbr0 type bridge
qcow2 a.qcow2 64M
vg_up vg0 268M
lvcreate -qq -y --type thin-pool -n pool -L 64M vg0
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0
guest_up g mem=96 tick=300 a.qcow2 /dev/vg0/thin 'cfg=vif = ["mac=00:16:3e:5a:5a:11,bridge=xenbr0"]'
wait_tick g 3
create g s1.xlsave --name s1 --no-live -d xvda,external
configured() { xl list -l g | grep -E '"(uuid|mac|bridge|max_memkb|vdev)"' | sort; }
before=$(configured)

# A rehearsal: the running guest is as it was.
stood=$(stand g)
id=$(domid g)
xl-snapshot revert s1.xlsave --restore-first --rehearse --json >rehearsed.out
[[ $(json rehearsed <rehearsed.out) == true ]] || fail "no rehearsal: $(<rehearsed.out)"
[[ $(domid g) == "$id" ]] || fail "a rehearsal changed the domain"
unharmed g "$stood"
nothing_between

# A restore that fails costs nothing.
helper=$(ls /usr/lib/xen-*/bin/libxl-save-helper)
printf '#!/bin/bash\necho "no such luck" >&2\nexit 1\n' >helper.sh
chmod +x helper.sh
mount --bind helper.sh "$helper"
refused 1 'could not restore g' xl-snapshot revert s1.xlsave --restore-first
umount "$helper"
[[ $(domid g) == "$id" ]] || fail "a failed restore changed the domain"
unharmed g "$stood"
nothing_between

first s1.xlsave
[[ $(configured) == "$before" ]] || fail "configured: $(diff <(echo "$before") <(configured))"
[[ $(image_of g xvdb) == /dev/vg0/thin ]] || fail "xvdb is $(image_of g xvdb)"
grep -q '"/dev/vg0/thin' first.out || fail "the report names another volume: $(<first.out)"
params=$(xenstore-ls -f | grep -c "/$(domid g)/.*params = \"/dev/vg0/thin\"" || :)
((params == 2)) || fail "$params of 2 xenstore keys name the volume"
[[ $(volumes vg0) =~ ^pool\ thin\ thin.before-revert-[0-9-]+\ thin.s1$ ]] || fail "volumes: $(volumes vg0)"
outage=$(ms "$(json outage_ms <first.out)")
((outage < 2000)) || fail "it was away for $outage ms"

create g s2.xlsave --name s2 --no-live -d xvda,external
more_ticks g 2
not_torn g
xl destroy g
gone g
qemu_img_check_all
lvm_check vg0
detail "away for $outage ms; a rehearsal and a failed restore not noticed"
