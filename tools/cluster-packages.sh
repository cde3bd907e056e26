#!/bin/sh
# Install the Debian packages that a real Kubernetes node and the tests on it need, and this machine lacks: the
# container runtime, a static busybox for images, and Prometheus to read the metrics with. Asks nothing, starts no
# service, and touches nothing when everything is there. Without root or sudo it says what to install.
set -eu
exec </dev/null
PATH=$PATH:/usr/sbin:/sbin
. "$(dirname "$0")/apt.sh"

static_busybox() { busybox=$(command -v busybox) && ! ldd "$busybox"; }

need containerd sh -c 'command -v containerd && command -v ctr && command -v containerd-shim-runc-v2'
need runc command -v runc
need containernetworking-plugins test -x /usr/lib/cni/loopback
need busybox-static static_busybox
need prometheus command -v prometheus
need iptables command -v iptables
need mount sh -c 'command -v mount'
need util-linux sh -c 'command -v unshare && command -v nsenter'

become_root cluster "try again"
# The packages would start their services (containerd, prometheus) as they are installed; 101 forbids that.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    undo="$as_root rm -f $policy"
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
install_missing cluster >&2
