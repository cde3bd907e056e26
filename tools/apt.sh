# Sourced by those who install Debian packages: what they need and this machine lacks, told, and installed.

missing=
need() { # need PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

undo=: # a command that is run at the end, however it comes
# become_root WHO AGAIN: ends here where nothing is missing, or nobody may install it; else sets as_root.
become_root() {
    [ -n "$missing" ] || exit 0
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        as_root=none
    fi
    if [ "$as_root" = none ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "$1: missing:$missing; install them (Debian: apt-get install$missing) and $2" >&2
        exit 1
    fi
    log=$(mktemp)
    trap 'rm -f "$log"; $undo' EXIT
}

# install_missing WHO: as root, by apt-get.
install_missing() {
    echo "$1: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    if ! { $as_root apt-get -q update && $as_root apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1; then
        cat "$log" >&2
        echo "$1: apt-get could not install$missing; see above" >&2
        exit 1
    fi
}
