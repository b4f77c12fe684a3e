#!/bin/bash
# The same with a compressed image, which we unpack and feed to xl.
# slow
. /lab/t/lib.sh
. /lab/t/slow.sh

compress=zstd:1 slow_revert s1.xlsave.zst
went_back g s/s1.xlsave.zst
