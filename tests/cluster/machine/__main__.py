"""`python -m tests.cluster.machine`: a cluster to look into, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys

from tests.cluster.machine.cluster import Cluster
from tests.cluster.machine.errors import ClusterError


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), Cluster() as cluster:
            kubectl = f"{cluster.kubectl_path} --kubeconfig={cluster.kubeconfig()}"
            print(f"ready in {cluster.started_in_s:.1f} s; Ctrl-C ends it\n")
            print(f"  {kubectl} get nodes")
            print(f"  {' '.join(cluster.node.inside(['sh']))}    # a shell on the node")
            print(f"  tail -f {cluster.logs}/*.log", flush=True)
            signal.pause()
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
