#!/bin/sh
# clang-tidy over the C sources, with the checks of .clang-tidy. A file is checked again only when it, or a
# header, has changed since it was found clean.
set -eu
stamps=build/tidy
mkdir -p "$stamps"
newest=$(ls -t .clang-tidy $(git ls-files 'native/*.h') build/gen/*.h 2>/dev/null | head -n 1)
todo=
for source in $(git ls-files 'native/shim/*.c' 'native/simgpu/*.c'); do
    stamp=$stamps/$(echo "$source" | tr / _)
    if [ ! -e "$stamp" ] || [ "$source" -nt "$stamp" ] || [ "$newest" -nt "$stamp" ]; then
        todo="$todo $source"
    fi
done
[ -n "$todo" ] || exit 0
status=0
for source in $todo; do
    if clang-tidy --quiet --warnings-as-errors='*' "$source" -- -std=c11 -D_GNU_SOURCE \
        -D__CUDA_API_VERSION_INTERNAL -Inative/include -Inative/shim -Inative/simgpu -Ibuild/gen \
        -isystem build/include/cuda13 -isystem build/include/nvml >build/tidy.log 2>&1; then
        touch "$stamps/$(echo "$source" | tr / _)"
    else
        cat build/tidy.log
        status=1
    fi
done
exit $status
