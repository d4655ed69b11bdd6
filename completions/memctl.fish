# SPDX-License-Identifier: Apache-2.0
# fish completion for memctl. memctl itself says what may stand at the cursor (`memctl _complete`), so no list
# here can fall behind it.

function __memctl_complete
    set -l current (commandline -ct)
    set -l words (commandline -opc)
    set -e words[1]
    for line in (memctl _complete -- $words "$current" 2>/dev/null)
        if string match -q ':path*' -- $line
            __fish_complete_path "$current"
        else
            echo $line
        end
    end
end

complete -c memctl -f -a '(__memctl_complete)'
