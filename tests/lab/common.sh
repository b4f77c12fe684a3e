# Sourced by the lab's scripts on the host: where things are.
# shellcheck shell=bash disable=SC2034

lab_src=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
lab_top=$(cd "$lab_src/../.." && pwd -P)
lab_dir=${XL_LAB_DIR:-$lab_top/target/lab}
mkdir -p "$lab_dir"
lab_dir=$(cd "$lab_dir" && pwd -P)

say() { echo "lab: $*" >&2; }
die() { say "$@"; exit 1; }
