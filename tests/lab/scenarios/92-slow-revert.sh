#!/bin/bash
# The image is on storage so slow that xl needs more than six minutes to read it: nothing is given up.
# slow
. /lab/t/lib.sh
. /lab/t/slow.sh

slow_revert s1.xlsave
went_back g s/s1.xlsave
