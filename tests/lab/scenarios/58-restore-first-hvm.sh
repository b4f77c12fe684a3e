#!/bin/bash
# revert --restore-first of an HVM guest with a disk of every kind.
# timeout: 1800
# slow
. /lab/t/kinds.sh
. /lab/t/restore-first.sh

first_every_disk hvm
