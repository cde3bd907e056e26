#!/bin/sh
# Install the Debian packages that the build needs and this machine lacks. Asks nothing, and touches nothing
# when everything is there. Without root or sudo it says what to install.
set -eu
exec </dev/null

missing=
need() { # need PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

header() { echo "#include <$1>" | cc -E -x c - ; }
fuzzer() { ls "$(clang --print-runtime-dir)"/libclang_rt.fuzzer*.a; }
python_header() { test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; }

need gcc sh -c 'command -v cc && command -v gcc'
need libc6-dev header stdio.h
need make command -v make
need git command -v git
need python3-venv python3 -c 'import ensurepip, venv'
need python3-dev python_header
need clang command -v clang
need libclang-rt-dev fuzzer
need gcc-aarch64-linux-gnu command -v aarch64-linux-gnu-gcc
need libc6-dev-arm64-cross test -f /usr/aarch64-linux-gnu/include/stdio.h

[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    as_root=none
fi
if [ "$as_root" = none ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: missing:$missing; install them (Debian: apt-get install$missing) and run make again" >&2
    exit 1
fi

echo "setup: installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { $as_root apt-get -q update && $as_root apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup: apt-get could not install$missing; see above" >&2
    exit 1
fi
