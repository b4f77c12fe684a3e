#!/bin/bash
# Four new domains from one snapshot at the same time, beside the running original.
. /lab/t/lib.sh
. /lab/t/gold.sh

many_from_one 4
