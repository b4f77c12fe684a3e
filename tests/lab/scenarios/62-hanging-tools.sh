#!/bin/bash
# What hangs is given up after a time, and what somebody else does in that time is noticed: qemu-img, and an
# xl save that lets the guest run in the middle of ours. For QEMU, see 39.
# slow
. /lab/t/lib.sh

for disk in a b; do qcow2 $disk.qcow2 32M; done
guest_up g mem=96 tick=300 a.qcow2 b.qcow2
wait_tick g 2
before=$(stand g)

# qemu-img hangs: two minutes, while the guest runs.
mkdir -p /run/real && cp /usr/bin/qemu-img /run/real/
printf '%s\n' '#!/bin/bash' '[[ $1 != create ]] || exec sleep 1000' 'exec /run/real/qemu-img "$@"' >qemu-img.sh
chmod +x qemu-img.sh
mount --bind qemu-img.sh /usr/bin/qemu-img
begin=$SECONDS
refused 1 'did nothing for 120 s and was killed' xl-snapshot create g --memory s1.xlsave --name s1 --no-live -d xvdb,external
umount /usr/bin/qemu-img
((SECONDS - begin < 150)) || fail "it took $((SECONDS - begin)) s"
! pgrep -fx 'sleep 1000' || fail "qemu-img still hangs about"
unharmed g "$before"

# xl save begins while the guest is suspended by us and our storage is slow. After a minute without an answer
# it takes our suspend for its own, saves, and lets the guest go on: what we save from then on is of no one
# moment. That must be noticed.
hold_create g s2.xlsave --name s2 --no-live
xl save -c g plain.out
more_ticks g 2
let_create 1 'save its memory'
[[ ! -e s2.xlsave && ! -e s2.xlsave.partial ]] || fail "there is an image of a guest that ran meanwhile"
more_ticks g 3
not_torn g

xl destroy g
qemu_img_check_all
detail "qemu-img given up after 120 s, an interfering xl save noticed"
