#!/bin/bash
# The program that writes the memory is killed while the guest runs: the guest goes on, and the next
# snapshot works.
# slow
. /lab/t/lib.sh

for disk in c d; do qcow2 $disk.qcow2 32M; done
guest_up p type=pvh mem=96 tick=300 c.qcow2 d.qcow2
wait_tick p 2
before=$(stand p)
hold_create p s1.xlsave --name s1 --live -d xvdb,external
kill -KILL "$helper_pid"
let_create 1 'Killed'
unharmed p "$before"
create p s1.xlsave --name s1 --live
xl destroy p
detail "exit 1, everything as before"
