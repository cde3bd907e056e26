"""The addresses of one cluster: 127.N.0.0/16, with N taken by nobody else on this machine.

All of 127.0.0.0/8 is this machine's own, so every server can have its usual port, clusters do not meet, and
nothing can be reached from outside. A Service's cluster IP is of the same range: who binds to it serves it.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from tests.cluster.machine.errors import CannotRunContainers

_FIRST, _LAST = 96, 250


class Network:
    """A range of addresses, held until `close` or until this process ends."""

    PORT = 443

    def __init__(self) -> None:
        self._lock, self._second = _take()
        self.range = f"127.{self._second}.0.0/16"
        self.service = f"127.{self._second}.0.1"
        """The API server: the first address of the Services' range, which is Service default/kubernetes."""
        self.control = f"127.{self._second}.255.2"
        """etcd, controller-manager and scheduler: from the end of the range, away from `address`."""
        self.node = f"127.{self._second}.255.10"
        """The kubelet's and the runtime's servers."""
        self.host = _host_address()
        """An address that is not loopback: the API wants one for a node. Nothing of ours listens there."""
        self.url = f"https://{self.service}:{self.PORT}"

    def address(self, number: int) -> str:
        """Address `number` of the range, 2 to 250: for a Service and the server that stands for it."""
        if not 2 <= number <= 250:
            raise ValueError(f"address {number}: 2 to 250 are there to be taken")
        return f"127.{self._second}.0.{number}"

    def close(self) -> None:
        self._lock.close()


def _take() -> tuple[socket.socket, int]:
    for second in range(_FIRST, _LAST):
        # The kernel takes an abstract name back when its holder dies, so no lock can be left behind.
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(OSError):
            lock.bind(f"\0vcuda-test-cluster-{second}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((f"127.{second}.0.1", Network.PORT))
            return lock, second
        lock.close()
    raise CannotRunContainers(
        f"port {Network.PORT} of 127.{_FIRST}.0.1 to 127.{_LAST - 1}.0.1: none can be had"
    )


def _host_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                ("192.0.2.254", 9)
            )  # asks the routing table alone: a datagram socket sends nothing yet
        except OSError as error:
            raise CannotRunContainers(
                f"no address but loopback, and a node must have one: {error}"
            ) from error
        return str(probe.getsockname()[0])
