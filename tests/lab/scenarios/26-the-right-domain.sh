#!/bin/bash
# The right domain, or none: copied UUIDs, names that are numbers, renamed, rebooted, destroyed and started
# again while a revert prepares, and one that cannot go away because somebody holds its memory.
. /lab/t/lib.sh

w=$LAB_WORK
for disk in a b c; do qcow2 $disk.qcow2 32M; done
uuid=6f2c3c5e-7bd8-4d0e-9f3b-000000000012
guest_up g mem=96 tick=300 "cfg=uuid = \"$uuid\"" a.qcow2 b.qcow2
wait_tick g 2
# By its configuration file, which then names what it runs on.
lab_boot[s1.xlsave]=$(boot_id g) lab_from[s1.xlsave]=$(tick g)
xl-snapshot create g.cfg --memory s1.xlsave --name s1 --no-live -d xvdb,external
lab_until[s1.xlsave]=$(($(tick g) + 1))
wait_tick g $((lab_until[s1.xlsave] + 3))
id=$(domid g)

# same_domain: g is the domain it was and counts on.
same_domain() {
	[[ $(domid g) == "$id" ]] || fail "g is domain $(domid g) instead of $id"
	more_ticks g 2
	not_torn g
}

# Another domain with a copied configuration runs beside it: neither is taken for the other.
sed -e 's/^name.*/name = "copy"/' -e "s|^disk.*|disk = [\"format=qcow2,vdev=xvda,access=rw,target=$w/c.qcow2\"]|" g.cfg >copy.cfg
xl create -q -p copy.cfg
for name in g copy "$id" "$uuid"; do
	refused 3 'copy has number' xl-snapshot create "$name" --name s2 --memory s2.xlsave --no-live
done
refused 3 'Two domains have the UUID' xl-snapshot revert s1.xlsave
refused 3 'Two domains have the UUID' xl-snapshot create g.cfg --name s2 --memory s2.xlsave --no-live
same_domain
# Alone, the copy is not the snapshot's domain either.
xl rename g away
xl destroy copy
refused 3 'is called away' xl-snapshot revert s1.xlsave
xl rename away g
same_domain

# A configuration file whose name is the number of g.
sed -e "s/^name.*/name = \"$id\"/" -e '/^uuid/d' copy.cfg >number.cfg
cp number.cfg number.out
refused 3 "Domain $id does not run" xl-snapshot create number.cfg --name s2 --memory s2.xlsave -d xvda,external
cmp number.cfg number.out || fail "number.cfg was rewritten"
xl create -q -p number.cfg
number=$(xl list "$id" | awk 'END {print $2}')
refused 3 'means more than one domain' xl-snapshot create "$id" --name s2 --memory s2.xlsave --no-live
xl destroy "$(xl list | awk -v n="$id" '$1 == n {print $2}')"
same_domain

# The preparations of a revert are held in qemu-img, which makes the overlay.
mkdir -p /run/real
cp /usr/bin/qemu-img /run/real/
cat >qemu-img.sh <<'END'
#!/bin/bash
if [[ $1 == create && -e /run/real/hold ]]; then
	touch /run/real/held
	while [[ -e /run/real/hold ]]; do read -r -t 0.1 <> <(:) || :; done
fi
exec /run/real/qemu-img "$@"
END
chmod +x qemu-img.sh
mount --bind qemu-img.sh /usr/bin/qemu-img
hold_revert() {
	touch /run/real/hold
	rm -f /run/real/held
	xl-snapshot revert s1.xlsave >revert.out 2>errors.out &
	revert_pid=$!
	until [[ -e /run/real/held ]]; do
		kill -0 "$revert_pid" 2>/dev/null || fail "the revert ended: $(<errors.out)"
		lab_pause 0.1
	done
}
let_revert() {
	local rc=0
	rm /run/real/hold
	wait "$revert_pid" || rc=$?
	cat errors.out >&2
	((rc == $1)) || fail "exit status $rc instead of $1: $(<errors.out)"
}

# The guest asks for a reboot meanwhile: its xl process is held, so that there is no other domain.
monitor=$(xl_monitor_pid g)
mark g
hold_revert
[[ $(ps -o stat= -p "$monitor") == T* ]] || fail "the xl process is not held"
xl reboot g || xl reboot -F g
wait_line g '^STOP reboot'
let_revert 0
went_back g s1.xlsave
(($(xl list | grep -c '^g ') == 1)) || fail "more than one g: $(xl list)"
for ((i = 0; i < 50; i++)); do [[ -e /proc/$monitor ]] || break; lab_pause; done
[[ ! -e /proc/$monitor ]] || fail "the old xl process is still there"

# It is destroyed and started again: that is not the domain that was looked at.
hold_revert
xl destroy g
mark g
xl create -q g.cfg
let_revert 1
grep -q 'it is number' errors.out || fail "the wrong reason: $(<errors.out)"
id=$(domid g)
wait_line g '^TICK'
same_domain
# It is only destroyed, and only renamed.
hold_revert
xl rename g h
let_revert 1
grep -q 'renamed' errors.out || fail "the wrong reason: $(<errors.out)"
xl rename h g
same_domain
hold_revert
xl destroy g
let_revert 1
grep -q 'has destroyed domain' errors.out || fail "the wrong reason: $(<errors.out)"
# Nobody runs; somebody starts it before the disks are put back.
hold_revert
xl create -q g.cfg
let_revert 1
grep -q 'It was started meanwhile' errors.out || fail "the wrong reason: $(<errors.out)"
id=$(domid g)
mark g
wait_line g '^TICK'
same_domain
# Somebody pauses it before it is suspended: told at once, not after libxl's minute, and it stays paused.
touch /run/real/hold
rm -f /run/real/held
xl-snapshot create g --name s3 --memory s3.xlsave --no-live -d xvda,external >create.out 2>errors.out &
revert_pid=$!
until [[ -e /run/real/held ]]; do lab_pause 0.1; done
xl pause g
begin=$SECONDS
let_revert 1
grep -q 'paused the domain' errors.out || fail "the wrong reason: $(<errors.out)"
((SECONDS - begin < 20)) || fail "it took $((SECONDS - begin)) s to see that it is paused"
[[ $(xl list g | awk 'END {print $5}') == --p--- ]] || fail "it was let run: $(xl list)"
xl unpause g
same_domain
umount /usr/bin/qemu-img
# Of all these only the revert that succeeded has left an overlay.
(($(ls | grep -c 'after-s1\.2') == 1)) || fail "left: $(ls | xargs)"

# A page of its memory stays mapped, by a save that nobody reads: a domain that is destroyed stays in Xen's
# list then. The snapshot can be reverted to all the same, and again.
mkfifo fifo
exec 7<>fifo
xl save -c g fifo &
until helper=$(pgrep -P $! -f libxl-save-helper) && grep -qs pipe_write "/proc/$helper/wchan"; do lab_pause; done
refused 3 'saving' xl-snapshot create g --name s2 --memory s2.xlsave --no-live
kill -STOP "$helper"
xl destroy g
xl list | grep -q "^(null) *$id " || fail "no zombie: $(xl list)"
mark g
for ((i = 0; i < 2; i++)); do
	xl-snapshot revert s1.xlsave
	more_ticks g 2
	not_torn g
done
xl list | grep -q "^(null) *$id " || fail "the zombie is gone: $(xl list)"
kill -KILL "$helper"
exec 7>&-
xl destroy g
qemu_img_check_all
detail "copied UUID, numeric name, rename, reboot, restart and destroy in a revert, zombie: never another domain"
