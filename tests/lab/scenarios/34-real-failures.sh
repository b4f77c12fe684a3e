#!/bin/bash
# The image, the disks and the tools fail in the middle of a snapshot that could be planned: each time
# everything is as it was and the error names what failed and why.
# slow
. /lab/t/lib.sh

w=$LAB_WORK
qcow2 a.qcow2 32M
qcow2 b.qcow2 32M
vg_up vg0 160M
lvcreate -qq -y -n lv -L 32M vg0
mkdir full closed
mount -t tmpfs -o size=170M none full
guest_up g mem=96 tick=300 a.qcow2 b.qcow2 /dev/vg0/lv
wait_tick g 2
before=$(stand g)
snap=(--name s1 --no-live -d xvdb,external)

# The file system of the image fills up. What the plan saw was enough.
hold_create g full/s1.xlsave "${snap[@]}"
dd if=/dev/zero of=full/filler.out bs=1M || :
let_create 1 'MiB left, which others who write to it need' full/s1.xlsave
rm full/filler.out
unharmed g "$before"

# The group fills up, so that the real lvcreate fails while the guest stands still.
hold_create g s1.xlsave "${snap[@]}"
lvcreate -qq -y -n filler -l 100%FREE vg0
let_create 1 'insufficient free space' vg0/lv
refused 3 'size=SIZE' xl-snapshot create g --memory s1.xlsave "${snap[@]}"
lvremove -qq -y vg0/filler
unharmed g "$before"

# The place of an overlay is on a read-only mount.
mount --bind closed closed
mount -o remount,bind,ro closed
refused 3 'Read-only file system' xl-snapshot create g --memory s1.xlsave --name s1 --no-live \
	-d "xvdb,external,file=$w/closed/b.qcow2"
refused 3 'Read-only file system' xl-snapshot create g --memory closed/s1.xlsave "${snap[@]}"
umount closed

# Another program has QEMU's socket.
socket=/var/run/xen/qmp-libxenstat-$(domid g)
socat -u "UNIX:$socket" OPEN:greeting.out,creat &
until [[ -s greeting.out ]]; do lab_pause 0.1; done
refused 3 "$socket is taken by another program" xl-snapshot create g --memory s1.xlsave "${snap[@]}"
kill $!
wait $! || :

# qemu-img fails.
mkdir -p /run/real && cp /usr/bin/qemu-img /run/real/
cat >qemu-img.sh <<'END'
#!/bin/bash
[[ $1 != "$(</run/real/fails)" ]] || { echo "qemu-img: $1: out of order" >&2; exit 1; }
exec /run/real/qemu-img "$@"
END
chmod +x qemu-img.sh
mount --bind qemu-img.sh /usr/bin/qemu-img
echo create >/run/real/fails
refused 1 'create: out of order' xl-snapshot create g --memory s1.xlsave "${snap[@]}"
umount /usr/bin/qemu-img
unharmed g "$before"

# All that was in the way is gone: it works.
create g ok.xlsave --name ok --no-live -d xvdb,external

# QEMU is killed, in the middle and before. The guest has lost its disks then; the snapshot of them must
# neither be claimed nor half be there.
files() { find . -name '*.xlsave*' -o -name '*after*' -o -name '*.qcow2' -printf '%p %m\n' | sort; volumes vg0; }
left=$(files)
qemu=$(xenstore-read "/local/domain/$(domid g)/image/device-model-pid")
hold_create g s1.xlsave "${snap[@]}"
kill -KILL "$qemu"
let_create 1 QEMU
[[ $(files) == "$left" ]] || fail "left: $(diff <(echo "$left") <(files) | grep '^[<>]' | xargs)"
refused 3 "$socket" xl-snapshot create g --memory s1.xlsave "${snap[@]}"
xl destroy g
qemu_img_check_all
lvm_check vg0
detail "full disk and group, read-only place, qemu-img, QEMU busy and killed: nothing left by any"
