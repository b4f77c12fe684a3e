#!/bin/bash
# On 4.17: snapshots of a PV and a PVH guest, each with an internal and an external disk, and of one whose VHD
# only the QEMU of that release serves. 98 and 99 go on with them.
# mixed
# suite: bookworm  (the first part of tests/lab/mixed)
. /lab/t/mixed.sh

for disk in pa pb ha hb; do qcow2 $disk.qcow2 64M; done
qemu-img create -q -f vpc v.vhd 64M
guest_up p tick=500 $mixed/pa.qcow2 $mixed/pb.qcow2
guest_up h type=pvh tick=500 $mixed/ha.qcow2 $mixed/hb.qcow2
guest_up v tick=500 $mixed/v.vhd
for name in p h v; do
	wait_tick $name 3
	options=(-d xvdb,external)
	[[ $name != v ]] || options=(-d xvda,external)
	create $name $name.xlsave --name s1 --no-live "${options[@]}"
	keep $name $name.xlsave
	xl destroy $name
done
leave
detail "PV and PVH, internal and external, and a VHD, saved by Xen $(xl info xen_version)"
