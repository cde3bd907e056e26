#!/bin/sh
# clang-tidy over the C sources, with the checks of .clang-tidy. A file is checked again only when it, or a
# header, has changed since it was found clean. `tools/tidy.sh FILE` checks one.
set -eu
stamps=build/tidy
mkdir -p "$stamps"

check() {
    name=$(echo "$1" | tr / _)
    if clang-tidy --quiet --warnings-as-errors='*' "$1" -- -std=c11 -D_GNU_SOURCE -D__CUDA_API_VERSION_INTERNAL \
        -Inative/include "-I$(dirname "$1")" -Ibuild/gen -isystem build/include/cuda13 -isystem build/include/nvml \
        >"$stamps/$name.log" 2>&1; then
        touch "$stamps/$name"
    else
        grep -v 'warnings generated' "$stamps/$name.log"
        return 1
    fi
}

if [ $# -gt 0 ]; then
    check "$1"
    exit
fi
newest=$(ls -t .clang-tidy $(git ls-files 'native/*.h') build/gen/*.h | head -n 1)
todo=
for source in $(git ls-files 'native/shim/*.c' 'native/simgpu/*.c'); do
    stamp=$stamps/$(echo "$source" | tr / _)
    if [ ! -e "$stamp" ] || [ "$source" -nt "$stamp" ] || [ "$newest" -nt "$stamp" ]; then
        todo="$todo $source"
    fi
done
[ -n "$todo" ] || exit 0
echo "lint: clang-tidy over $(echo $todo | wc -w) files"
echo $todo | xargs -n 1 -P "$(nproc)" "$0"
