#!/bin/bash
# The same with a new domain beside the old one, whose image has to be rewritten on the way.
# slow
. /lab/t/lib.sh
. /lab/t/slow.sh

mkdir clones
slow_revert s1.xlsave --as h --overlay-dir clones
more_ticks h 3
not_torn h
more_ticks g 3
