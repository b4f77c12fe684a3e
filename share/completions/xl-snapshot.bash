# By hand: names of domains, xl configurations, SPEC.toml files and snapshots.

# Adds the words of standard input that begin with $cur. What is added is typed as it stands: a name may
# have been chosen by somebody else. Where readline quotes what it takes for file names, $1 says so.
_xl_snapshot_add() {
    local line quoted
    while IFS= read -r line; do
        printf -v quoted %q "$line"
        [[ $line == "$cur"* || $quoted == "$cur"* ]] || continue
        [[ ${1-} == files ]] && COMPREPLY+=("$line") || COMPREPLY+=("$quoted")
    done
}

# Adds directories, and files with one of the endings.
_xl_snapshot_files() {
    local ending
    compopt -o filenames 2>/dev/null
    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -d -- "$cur")
    for ending; do
        mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -X "!*.$ending" -- "$cur")
    done
}

# Snapshots as DOMAIN/NAME.
_xl_snapshot_names() {
    local file
    for file in "${XL_SNAPSHOT_DIR:-/var/lib/xen/snapshots}"/*/*.{xlsave,xlsave.zst,record}; do
        [[ -e $file ]] || continue
        file=${file%.zst}
        file=${file%.xlsave}
        file=${file%.record}
        printf '%s\n' "${file#"${XL_SNAPSHOT_DIR:-/var/lib/xen/snapshots}"/}"
    done
}

# How to snapshot the disk whose name is typed, or any disk of a running domain.
_xl_snapshot_disks() {
    local vdev
    { [[ $cur == *,* ]] && echo "${cur%%,*}" || xl list -l 2>/dev/null | awk -F'"' '$2 == "vdev" && $4 ~ /^[a-z0-9]+$/ {print $4}' | sort -u; } |
        while read -r vdev; do
            printf '%s\n' "$vdev",{internal,external,lvm,reflink,none}
        done
}

_xl_snapshot() {
    local cur=${COMP_WORDS[COMP_CWORD]} at=0 i previous=${COMP_WORDS[COMP_CWORD - 1]}
    [[ $previous != = ]] || previous=${COMP_WORDS[COMP_CWORD - 2]}
    if [[ ${COMP_WORDS[1]} == create && $previous == @(-d|--disk) ]]; then
        COMPREPLY=()
        # With what is typed as it stands: %q would quote the comma.
        _xl_snapshot_add files < <(_xl_snapshot_disks)
        return
    fi
    # The number of the argument, options and their values not counted; bash splits --name=value.
    for ((i = 2; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            @VALUE_OPTIONS@) [[ ${COMP_WORDS[i + 1]} != = ]] && i=$((i + 1)) || i=$((i + 2)) ;;
            -?*) ;;
            *) at=$((at + 1)) ;;
        esac
    done
    if ((COMP_CWORD < 2 || i > COMP_CWORD)) || [[ $cur == -?* ]]; then
        _xl__snapshot "$@"
        return
    fi
    COMPREPLY=()
    case "${COMP_WORDS[1]} $at" in
        "create 0" | "backup 0")
            _xl_snapshot_add < <(xl list 2>/dev/null | awk 'NR > 1 && $1 != "Domain-0" {print $1}')
            if ((${#COMPREPLY[@]} > 0)); then
                # Not as file names: a directory may have the name of a domain.
                _xl_snapshot_add < <(compgen -f -X '!*.cfg' -- "$cur")
            else
                _xl_snapshot_files cfg
            fi
            ;;
        "create 1") _xl_snapshot_files toml ;;
        "revert 0" | "show 0" | "serve 0" | "export 0" | "delete "* | "compact "*)
            _xl_snapshot_files xlsave xlsave.zst record toml
            for i in xlsave xlsave.zst record; do
                _xl_snapshot_add files < <(compgen -G "${XL_SNAPSHOT_DIR:-/var/lib/xen/snapshots}/*/*.$i")
            done
            _xl_snapshot_add files < <(_xl_snapshot_names)
            ;;
        "prune 0" | "list "*)
            _xl_snapshot_add < <(
                xl list 2>/dev/null | awk 'NR > 1 && $1 != "Domain-0" {print $1}'
                _xl_snapshot_names | sed 's,/.*,,' | sort -u
            )
            ((${#COMPREPLY[@]} > 0)) || [[ ${COMP_WORDS[1]} != list ]] || _xl_snapshot_files
            ;;
        *) _xl__snapshot "$@" ;;
    esac
}

complete -F _xl_snapshot -o bashdefault -o default xl-snapshot
