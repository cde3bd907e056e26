"""`make demo-cluster`: pods in shares of simulated cards, on a real Kubernetes that lives on this machine.

Brings up the cluster of the tests with two simulated 16-GiB V100, installs all of vcuda as its users do, with
`kubectl apply -k`, and runs what users do: each row of the tables says what was asked, what a program in a
real container got, and whether that is what was expected. Exits with 1 if any of it is not.
"""

import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from demo import scenarios
from tests.cluster.applied import Applied
from tests.cluster.machine import CannotRunContainers, Cluster


def main() -> int:
    """Run all of it; the exit status."""
    console = Console()
    began = time.monotonic()
    claims: list[scenarios.Claim] = []
    try:
        with Cluster() as cluster, tempfile.TemporaryDirectory(prefix="vcuda-demo-") as directory:
            console.print(f"a Kubernetes with one node: up in {cluster.started_in_s:.0f} s")
            scenarios.make_image(cluster)
            console.print("kubectl apply -k: webhook, controller and node agent, in pods")
            with Applied(cluster, Path(directory) / "kustomization", cards=scenarios.CARDS) as site:
                console.print(f"the node offers {site.offered()} vcuda-core of two simulated V100-SXM2-16GB")
                for scenario in scenarios.ALL:
                    console.print(f"[dim]{scenario.__doc__}")
                    found = scenario(site, scenarios.Rules())
                    found.show(console)
                    claims += found.claims
    except CannotRunContainers as error:
        console.print(f"demo-cluster: {error}")
        return 1
    broken = sum(not each.kept for each in claims)
    console.print(f"{len(claims)} claims, {broken} not kept; {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
