#!/bin/bash
# Build the Kubernetes that go.mod pins: apiserver, controller-manager, scheduler, kubelet, kubectl and etcd.
#
#   tools/kubernetes/build.sh          prints the directory that has them, last line; builds them where they are missing
#   tools/kubernetes/build.sh --where  prints the directory, builds nothing
#
# They go to $VCUDA_KUBERNETES, or ${XDG_CACHE_HOME:-~/.cache}/vcuda/kubernetes-VERSION. The directory appears
# complete or not at all, and a second builder waits for the first. Exit status 3: no Go on this machine.
set -euo pipefail
exec </dev/null
cd "$(dirname "$0")"

version=$(awk '$1 == "k8s.io/kubernetes" && $2 ~ /^v/ { print substr($2, 2) }' go.mod)
target=${VCUDA_KUBERNETES:-${XDG_CACHE_HOME:-$HOME/.cache}/vcuda/kubernetes-$version}
programs=(etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet)

complete() {
    local program
    for program in "${programs[@]}"; do
        [ -x "$target/$program" ] || return 1
    done
}

say() { echo "kubernetes: $*" >&2; }

if [ "${1:-}" = --where ] || complete; then
    echo "$target"
    exit 0
fi
# Where Go's own installation puts it, for shells that have not heard of that.
PATH=$PATH:/usr/local/go/bin
if ! command -v go >/dev/null; then
    say "no 'go' on PATH to build Kubernetes $version with; install Go 1.24 or newer, or set VCUDA_KUBERNETES to a directory with: ${programs[*]}"
    exit 3
fi

mkdir -p "$(dirname "$target")"
exec 9>"$target.lock"
if ! flock -n 9; then
    say "somebody else builds $target; waiting"
    flock 9
fi
if complete; then
    echo "$target"
    exit 0
fi

building=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$building"' EXIT
IFS=. read -r major minor _ <<<"$version"
package=k8s.io/component-base/version
flags="-s -w -X $package.gitVersion=v$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"

say "building Kubernetes $version and etcd once, 5 to 10 minutes on two cores, into $target"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-mod=readonly -buildvcs=false -trimpath"
go mod download 2>&1 | tail -n 5 >&2
mapfile -t commands < <(go list tool)
total=$(go list -deps "${commands[@]}" | wc -l)
started=$SECONDS
# -v names each package as it is compiled; what the Go cache has already is not named.
if ! go build -v -o "$building/" -ldflags "$flags" "${commands[@]}" 2>&1 | tee "$target.log" | awk -v total="$total" '
        /^[a-zA-Z0-9._-]+(\/[^ ]+)*$/ && !/^#/ { done++; if (done % 100 == 0) { printf "kubernetes: %d of at most %d packages compiled\n", done, total; fflush() }; next }
        { print; fflush() }' >&2; then
    say "the build failed; what the compiler said is above and in $target.log"
    exit 1
fi
mv "$building/server" "$building/etcd"
chmod 755 "$building"
# What is there is incomplete (see above), so nobody uses it.
rm -rf "$target"
mv -T "$building" "$target"
complete || { say "go built $(ls "$target"), and not all of: ${programs[*]}"; exit 1; }
rm -f "$target.log"
say "built in $((SECONDS - started)) s: $(du -sh "$target" | cut -f 1) in $target"
echo "$target"
