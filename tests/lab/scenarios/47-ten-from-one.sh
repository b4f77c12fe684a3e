#!/bin/bash
# Ten new domains from one snapshot at the same time, beside the running original.
# slow
. /lab/t/lib.sh
. /lab/t/gold.sh

many_from_one 10
