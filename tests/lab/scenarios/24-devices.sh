#!/bin/bash
# Two processors, a network interface and a framebuffer: the same after a revert. A domain without
# any disk.
# slow
. /lab/t/lib.sh

ip link show xenbr0 >/dev/null 2>&1 || ip link add xenbr0 type bridge
ip link set xenbr0 up
qcow2 a.qcow2 64M
guest_up g tick=300 a.qcow2 'cfg=vcpus = 2
vif = ["mac=00:16:3e:5a:5a:01,bridge=xenbr0"]
vfb = ["vnc=1,vnclisten=127.0.0.1,vncunused=1"]'
wait_tick g 2

# What is not the domain's number, its disks or what a restore sets by itself.
devices() {
	xl list -l g | grep -E '"(uuid|max_vcpus|mac|bridge|listen|enable|devid)"' | sort
	xl network-list g | awk 'NR > 1 {print $1, $3, $5}'
	xl vcpu-list g | awk '$1 == "g" {print $3}'
	bridge link | grep -c xenbr0
	xenstore-ls "/local/domain/$(domid g)/device" | grep -E '^(vif|vfb|vkbd|vbd) '
}
before=$(devices)
[[ $before == *5a:5a:01* && $before == *vfb* ]] || fail "the guest lacks a device: $before"
create g s1.xlsave --name s1 --no-live
[[ $(devices) == "$before" ]] || fail "changed by the snapshot: $(diff <(echo "$before") <(devices))"
revert g s1.xlsave
# The frontends take a moment to connect.
for ((i = 0; i < 30; i++)); do [[ $(devices) == "$before" ]] && break; lab_pause; done
[[ $(devices) == "$before" ]] || fail "changed by the revert: $(diff <(echo "$before") <(devices))"
xl destroy g

guest_up n tick=300 mem=96
wait_tick n 2
create n n.xlsave --name n1 --no-live
revert n n.xlsave
cell "no disk" pv "not live" ok
cell "no disk" pv revert ok
detail "2 vcpus, vif, vfb; no disk at all"
