#!/bin/sh
# Install the Debian packages that a real Kubernetes node and the tests on it need, and this machine lacks: the
# container runtime, a static busybox for images, and Prometheus to read the metrics with. Asks nothing, starts no
# service, and touches nothing when everything is there. Without root or sudo it says what to install.
set -eu
exec </dev/null
PATH=$PATH:/usr/sbin:/sbin

missing=
need() { # need PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

static_busybox() { busybox=$(command -v busybox) && ! ldd "$busybox"; }

need containerd sh -c 'command -v containerd && command -v ctr && command -v containerd-shim-runc-v2'
need runc command -v runc
need containernetworking-plugins test -x /usr/lib/cni/loopback
need busybox-static static_busybox
need prometheus command -v prometheus
need iptables command -v iptables
need mount sh -c 'command -v mount'
need util-linux sh -c 'command -v unshare && command -v nsenter'

[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    as_root=none
fi
if [ "$as_root" = none ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "cluster: missing:$missing; install them (Debian: apt-get install$missing) and try again" >&2
    exit 1
fi

echo "cluster: installing$missing" >&2
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
made_policy=
undo() {
    rm -f "$log"
    [ -z "$made_policy" ] || $as_root rm -f "$policy"
}
trap undo EXIT
# The packages would start their services (containerd, prometheus) as they are installed; 101 forbids that.
if [ ! -e "$policy" ]; then
    made_policy=yes
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
if ! { $as_root apt-get -q update && $as_root apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "cluster: apt-get could not install$missing; see above" >&2
    exit 1
fi
