#!/bin/bash
# An HVM guest that has not unplugged its emulated drive: QEMU has the same image open twice. Refused
# where it matters, and a volume can be snapshotted all the same.
# slow
. /lab/t/lib.sh

qcow2 a.qcow2 64M
vg_up vg0 300M
lvcreate -qq -y -n lv -L 64M vg0
# Its kernel has no driver for the emulated drive, so it ticks in memory only.
guest_up g type=hvm wait=300 extra=xen_emul_unplug=never a.qcow2 /dev/vg0/lv
wait_tick g 2
refused 3 'emulated drive' xl-snapshot create g --name s1 --memory s1.xlsave --no-live
refused 3 'emulated drive' xl-snapshot create g --name s1 --memory s1.xlsave --no-live -d xvda,external
cell "emulated IDE" hvm create refused
more_ticks g 2
xl destroy g
detail "refused with the drive's name"
