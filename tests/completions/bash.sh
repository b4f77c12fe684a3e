# Prints what bash would complete: bash.sh COMPLETIONS WORD... (the last word is being typed)
# shellcheck shell=bash
. "$1"
COMP_WORDS=(xl-snapshot "${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
COMPREPLY=()
read -r -a registered < <(complete -p xl-snapshot)
[[ ${registered[*]} =~ ' -F '([^ ]+) ]]
"${BASH_REMATCH[1]}" xl-snapshot "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
