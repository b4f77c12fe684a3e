# Prints what fish would complete: fish.fish COMPLETIONS WORD... (the last word is being typed)
source $argv[1]
complete -C "xl-snapshot "(string join ' ' -- $argv[2..-1]) | string replace -r '\t.*' ''
