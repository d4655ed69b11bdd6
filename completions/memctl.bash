# SPDX-License-Identifier: Apache-2.0
# bash completion for memctl. memctl itself says what may stand at the cursor (`memctl _complete`), so no list
# here can fall behind it. The functions with a leading underscore come from the package bash-completion.

_memctl()
{
    local cur words cword word path
    _get_comp_words_by_ref -n =: cur words cword
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
    __ltrimcolon_completions "$cur"
}

complete -F _memctl memctl
