# Prints what zsh would complete: zsh.zsh COMPLETIONS WORD... (the last word is being typed)
# An interactive zsh on a terminal of its own, in which the builtin that takes matches prints them.
zmodload zsh/zpty
typeset -r start='
PROMPT=
fpath=('${(q)1:h}' $fpath)
autoload -Uz compinit
compinit -u -D
bindkey "^I" complete-word
between () { print -r -- "--8<--" }
compprefuncs=(between)
comppostfuncs=(between exit)
zstyle ":completion:*" insert-tab false
compadd () {
	if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then
		builtin compadd "$@"
		return
	fi
	local -a hits
	local hit
	builtin compadd -A hits "$@"
	for hit in $hits; do print -r -- "$IPREFIX$hit"; done
	builtin compadd "$@"
}
print -r -- READY
'
zpty shell zsh -f -i
zpty -w shell "source =(print -r -- ${(q)start})"
zpty -r shell line $'*\nREADY*'
zpty -w -n shell "xl-snapshot ${(j: :)@[2,-1]}"$'\t'
zpty -r -m shell line '*--8<--*--8<--*' || { print -r -- "no answer: $line"; exit 1 }
line=${line#*--8<--}
print -r -- ${${line%%--8<--*}//$'\r'/}
