# SPDX-License-Identifier: Apache-2.0
# bash completion for memctl. memctl itself says what may stand at the cursor (`memctl _complete`), so no list
# here can fall behind it. Names with a colon or an equals sign need the package bash-completion; the rest does not.

_memctl()
{
    local cur words cword word path
    if declare -F _get_comp_words_by_ref >/dev/null; then
        _get_comp_words_by_ref -n =: cur words cword
    else
        words=("${COMP_WORDS[@]}") cword=$COMP_CWORD cur=${COMP_WORDS[COMP_CWORD]}
    fi
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        if [[ $word == :path ]]; then
            compopt -o filenames
            while IFS= read -r path; do
                COMPREPLY+=("$path")
            done < <(compgen -f -- "$cur")
        else
            COMPREPLY+=("$(printf %q "$word")")
        fi
    done < <(memctl _complete -- "${words[@]:1:cword}" 2>/dev/null)
    if declare -F __ltrimcolon_completions >/dev/null; then __ltrimcolon_completions "$cur"; fi
}

complete -F _memctl memctl
