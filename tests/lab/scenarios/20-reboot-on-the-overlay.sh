#!/bin/bash
# After an external snapshot libxl, xenstore and QEMU name the overlay, the xl process is awake, a
# reboot comes up on the overlay, a power-off is handled, and the bases never change again.
# core
. /lab/t/lib.sh

qcow2 a.qcow2 64M
raw b.img 64M
guest_up g tick=300 a.qcow2 \
	"format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target=$LAB_WORK/b.img"
wait_tick g 3
monitor=$(xl_monitor_pid g)
xl-snapshot create g --name s1 --memory s1.xlsave --no-live -d xvda,external
base=$(sha256sum a.qcow2 b.img)
[[ $(stat -c %A a.qcow2 b.img | tr -d '\n') != *w* ]] || fail "a base is writable"

# names_the_overlays: all three places name them.
names_the_overlays() {
	local id list params
	id=$(domid g)
	list=$(xl list -l g)
	for vdev in xvda xvdb; do
		overlay=$LAB_WORK/g-$vdev.after-s1.qcow2
		[[ $list == *"\"pdev_path\": \"$overlay\""* ]] || fail "libxl does not name $overlay"
		params=$(xenstore-ls -f | grep -c "/$id/.*params = \"qcow2:$overlay\"" || :)
		((params == 2)) || fail "$params of 2 xenstore keys name $overlay"
		ls -l "/proc/$(xenstore-read "/local/domain/$id/image/device-model-pid")/fd" |
			grep -q -- "-> $overlay\$" || fail "QEMU does not have $overlay"
	done
}
names_the_overlays
[[ $(xl_monitor_pid g) == "$monitor" ]] || fail "the xl process is gone"
more_ticks g 2
not_torn g

at=$(tick g)
boot=$(boot_id g)
mark g
xl reboot g
wait_line g '^BOOT ' 90
more_ticks g 3
not_torn g
[[ $(boot_id g) != "$boot" ]] || fail "it did not reboot"
(($(tick g) >= at)) || fail "it did not come up on the overlay: tick $(tick g) after $at"
names_the_overlays
[[ $base == "$(sha256sum a.qcow2 b.img)" ]] || fail "a base was written to"

monitor=$(xl_monitor_pid g)
xl shutdown g
gone g 60
for ((i = 0; i < 50; i++)); do [[ -d /proc/$monitor ]] || break; lab_pause; done
[[ ! -d /proc/$monitor ]] || fail "the xl process outlives the domain"
[[ $base == "$(sha256sum a.qcow2 b.img)" ]] || fail "a base was written to"
qemu_img_check_all
detail "reboot and power-off handled, bases unchanged"
