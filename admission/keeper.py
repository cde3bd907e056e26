"""Keeps the webhook's certificate: reads and renews what all replicas share, publishes it, loads it.

There is no leader. Each replica looks every so often; who sees that something is due writes it, if nobody
wrote before, and who loses reads again. With files, the certificate is somebody else's to renew.
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from admission.certificate import CertificateError, Chain, Plan, chain_of, renewed
from admission.tls import ServingContext
from vcuda.errors import VcudaError

_LOG = logging.getLogger(__name__)
_LOSSES = 5
"""In a row, before a replica waits for the next look."""
_RETRY_S = 2.0
_LONGEST_S = 60.0


class ClusterError(VcudaError):
    """The API server did not do what it was asked."""


class Cluster(Protocol):
    """Where the chain is kept and published."""

    async def read(self) -> tuple[dict[str, str], str] | None:
        """The Secret's data and its version; None if there is none.

        Raises:
            ClusterError: it cannot be read.

        """
        ...

    async def write(self, data: dict[str, str], *, version: str | None) -> bool:
        """Replace what has this version, or, for None, make it; False if somebody was first.

        Raises:
            ClusterError: neither.

        """
        ...

    async def publish(self, bundle: bytes) -> None:
        """Have API servers trust these certificates, PEM, for the webhook.

        Raises:
            ClusterError: they may not.

        """
        ...


class Keeper:
    """Keeps one replica's certificate; see the module."""

    def __init__(
        self, cluster: Cluster, *, plan: Plan, serving: ServingContext, clock: Callable[[], dt.datetime]
    ) -> None:
        self._cluster = cluster
        self._plan = plan
        self._serving = serving
        self._clock = clock

    @property
    def interval_s(self) -> float:
        """Between two looks; several of them are made within the overlap."""
        return min(_LONGEST_S, self._plan.overlap.total_seconds() / 4)

    async def look(self) -> Chain:
        """Renew what is due, publish and load what there is.

        Raises:
            ClusterError: the API server is away or refuses. What could be read is loaded all the same.
            CertificateError: what was read cannot be served with.

        """
        for _ in range(_LOSSES):
            chain, version = await self._read()
            if chain is not None:
                try:
                    # Before anything is renewed: what signs next must be known to API servers.
                    await self._cluster.publish(chain.bundle)
                except ClusterError:
                    self._load(chain)
                    raise
            due = renewed(chain, self._plan, self._clock())
            if due is chain:
                self._load(due)
                return due
            if await self._cluster.write(due.secret(), version=version):
                _LOG.info("certificate: renewed; ends %s", due.serving.ends.isoformat())
                try:
                    await self._cluster.publish(due.bundle)
                finally:
                    self._load(due)
                return due
        raise ClusterError(f"certificate: other replicas were first {_LOSSES} times")

    async def keep(self) -> None:
        """Look for ever. Failures are logged, and the look is soon made again."""
        while True:
            try:
                await self.look()
            except VcudaError as error:
                _LOG.warning("%s; trying again", error)
                await asyncio.sleep(min(_RETRY_S, self.interval_s))
            else:
                await asyncio.sleep(self.interval_s)

    async def _read(self) -> tuple[Chain | None, str | None]:
        found = await self._cluster.read()
        if found is None:
            return None, None
        data, version = found
        try:
            return chain_of(data), version
        except CertificateError as error:
            _LOG.warning("%s; it is replaced", error)
            return None, version

    def _load(self, chain: Chain) -> None:
        if self._serving.load(chain.serving.certificate_pem, chain.serving.key_pem):
            _LOG.info("certificate: serving with one that ends %s", chain.serving.ends.isoformat())


class FileKeeper:
    """Loads a certificate from files, and again whenever they change."""

    def __init__(self, *, certificate: Path, key: Path, serving: ServingContext, interval_s: float) -> None:
        self._certificate = certificate
        self._key = key
        self._serving = serving
        self._interval_s = interval_s

    def look(self) -> None:
        """Load what the files hold.

        Raises:
            CertificateError: they hold no certificate with its key, or cannot be read.

        """
        try:
            pems = self._certificate.read_bytes(), self._key.read_bytes()
        except OSError as error:
            raise CertificateError(f"certificate: {error.filename}: {error.strerror}") from error
        if self._serving.load(*pems):
            _LOG.info("certificate: serving with %s", self._certificate)

    async def keep(self) -> None:
        """Look for ever. While the two files do not fit each other the certificate before is served."""
        while True:
            try:
                self.look()
            except CertificateError as error:
                _LOG.warning("%s; trying again", error)
            await asyncio.sleep(self._interval_s)
