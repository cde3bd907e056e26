#!/bin/sh
# Install the Debian packages that the build needs and this machine lacks. Asks nothing, and touches nothing
# when everything is there. Without root or sudo it says what to install.
set -eu
exec </dev/null
. "$(dirname "$0")/apt.sh"

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

become_root setup "run make again"
install_missing setup
