# By hand: names of domains, xl configurations, SPEC.toml files and snapshots.

# Whether argument number $argv[2] of command $argv[1] is to be completed, options not counted.
function __fish_xl_snapshot_argument
    set -l words (commandline -opc)
    test "$words[2]" = "$argv[1]"; or return 1
    set -l at 0
    set -l value no
    for word in $words[3..-1]
        if test $value = yes
            set value no
        else if string match -qr -- '^(@VALUE_OPTIONS@)$' $word
            set value yes
        else if not string match -q -- '-?*' $word
            set at (math $at + 1)
        end
    end
    test $value = no -a $at = $argv[2]
end

function __fish_xl_snapshot_domains
    xl list 2>/dev/null | awk 'NR > 1 && $1 != "Domain-0" {print $1}'
end

# Files with the endings $argv, and directories.
function __fish_xl_snapshot_files
    for ending in $argv
        __fish_complete_suffix $ending | string match -r -- '^.*(?:/|\\'$ending')(?:\t.*)?$'
    end
end

function __fish_xl_snapshot_kept
    set -l directory /var/lib/xen/snapshots
    test -z "$XL_SNAPSHOT_DIR"; or set directory $XL_SNAPSHOT_DIR
    set -l files $directory/*/*.xlsave $directory/*/*.xlsave.zst $directory/*/*.record
    printf '%s\n' $files
end

# Snapshots as DOMAIN/NAME.
function __fish_xl_snapshot_names
    set -l directory /var/lib/xen/snapshots
    test -z "$XL_SNAPSHOT_DIR"; or set directory $XL_SNAPSHOT_DIR
    set -l files $directory/*/*.xlsave $directory/*/*.xlsave.zst $directory/*/*.record
    for file in $files
        string replace -r '\.(xlsave(\.zst)?|record)$' '' (string sub -s (math (string length $directory) + 2) $file)
    end
end

# How to snapshot the disk whose name is typed, or any disk of a running domain.
function __fish_xl_snapshot_disks
    set -l typed (commandline -ct | string replace -r '^--disk=' '')
    set -l vdevs (string replace -r ',.*' '' -- $typed)
    if not string match -q '*,*' -- $typed
        set vdevs (xl list -l 2>/dev/null | awk -F'"' '$2 == "vdev" {print $4}' | sort -u)
    end
    for vdev in $vdevs
        printf '%s\n' $vdev,{internal,external,lvm,reflink,none}
    end
end

function __fish_xl_snapshot_places
    __fish_xl_snapshot_domains
    __fish_xl_snapshot_names | string replace -r '/.*' '' | sort -u
end

complete -c xl-snapshot -n "__fish_xl_snapshot_argument create 0" -f -a "(__fish_xl_snapshot_domains)" -d "running domain"
complete -c xl-snapshot -n "__fish_xl_snapshot_argument create 0" -f -a "(__fish_xl_snapshot_files .cfg)"
complete -c xl-snapshot -n "__fish_xl_snapshot_argument backup 0" -f -a "(__fish_xl_snapshot_files .cfg)"
complete -c xl-snapshot -n "__fish_xl_snapshot_argument create 1" -f -a "(__fish_xl_snapshot_files .toml)"
for command in revert show export serve
    complete -c xl-snapshot -n "__fish_xl_snapshot_argument $command 0" -f -a "(__fish_xl_snapshot_files .xlsave .xlsave.zst .record .toml)"
    complete -c xl-snapshot -n "__fish_xl_snapshot_argument $command 0" -f -a "(__fish_xl_snapshot_kept)" -d "memory image"
    complete -c xl-snapshot -n "__fish_xl_snapshot_argument $command 0" -f -a "(__fish_xl_snapshot_names)" -d snapshot
end
for at in 0 1 2 3
    complete -c xl-snapshot -n "__fish_xl_snapshot_argument delete $at" -f -a "(__fish_xl_snapshot_names)" -d snapshot
    complete -c xl-snapshot -n "__fish_xl_snapshot_argument compact $at" -f -a "(__fish_xl_snapshot_kept)" -d "memory image"
    complete -c xl-snapshot -n "__fish_xl_snapshot_argument list $at" -f -a "(__fish_xl_snapshot_places)" -d domain
end
complete -c xl-snapshot -n "__fish_xl_snapshot_argument prune 0" -f -a "(__fish_xl_snapshot_places)" -d domain
complete -c xl-snapshot -n "__fish_seen_subcommand_from create" -s d -l disk -x -a "(__fish_xl_snapshot_disks)"
