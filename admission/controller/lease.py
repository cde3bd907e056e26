"""Which replica leads: a Lease (coordination.k8s.io/v1), taken and renewed as Kubernetes' own controllers do.

Clocks of machines are not compared: who wants the lease waits until it has itself seen no renewal for as long
as the holder said it would hold. The holder counts from before it sent the renewal, and stops being sure well
before others may take over; what it sends while it is sure is answered or given up before that.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from admission.controller.settings import ControllerSettings
from vcuda.apiserver import CONFLICT, NOT_FOUND, Api, ApiError, Json, path_of
from vcuda.errors import VcudaError
from vcuda.kube.asks import mapping

_LOG = logging.getLogger(__name__)


class LeaseLostError(VcudaError):
    """Somebody else may lead."""


class Lease:
    """What one process does in the election."""

    def __init__(
        self, api: Api, settings: ControllerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._settings = settings
        self._clock = clock
        collection = ("namespaces", settings.namespace, "leases")
        self._collection = path_of(*collection, group="coordination.k8s.io")
        self._path = path_of(*collection, settings.lease, group="coordination.k8s.io")
        self._seen: object = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def sure(self) -> bool:
        """Whether this process leads, and will for as long as a request that is sent now can take."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < self._settings.renew_s

    def check(self) -> None:
        """See that this process leads.

        Raises:
            LeaseLostError: it does not, or cannot be sure.

        """
        if not self.sure:
            raise LeaseLostError(f"lease {self._settings.lease}: not renewed in time; others may lead")

    async def acquire(self) -> None:
        """Wait until this process leads, through any trouble with the server."""
        while not await self._try():
            await asyncio.sleep(self._settings.retry_s)
        _LOG.info("lease %s: %s leads", self._settings.lease, self._settings.identity)

    async def keep(self) -> None:
        """Renew for as long as that goes well.

        Raises:
            LeaseLostError: it was not renewed in time, or another one has it.

        """
        while True:
            await asyncio.sleep(self._settings.retry_s)
            await self._try()
            self.check()

    async def release(self) -> None:
        """Let another one lead at once, if this one does; what goes wrong is left to time."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = await self._api.get(self._path)
            if mapping(lease.get("spec")).get("holderIdentity") == self._settings.identity:
                lease["spec"] = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._api.replace(self._path, lease)
        except ApiError as error:
            _LOG.info("lease %s: not released: %s", self._settings.lease, error)

    async def _try(self) -> bool:
        """Take or renew the lease. Whether that was done."""
        asked_at = self._clock()
        try:
            lease = await self._api.get(self._path)
            if not self._may_take(mapping(lease.get("spec"))):
                return False
            await self._api.replace(self._path, {**lease, "spec": self._spec(mapping(lease.get("spec")))})
        except ApiError as error:
            if error.status == NOT_FOUND:
                return await self._make(asked_at)
            if error.status != CONFLICT:  # else another one was faster
                _LOG.warning("lease %s: %s", self._settings.lease, error)
            return False
        self._renewed_at = asked_at
        return True

    async def _make(self, asked_at: float) -> bool:
        body: Json = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._settings.lease, "namespace": self._settings.namespace},
            "spec": self._spec({}),
        }
        try:
            await self._api.create(self._collection, body)
        except ApiError as error:
            if error.status != CONFLICT:
                _LOG.warning("lease %s: %s", self._settings.lease, error)
            return False
        self._renewed_at = asked_at
        return True

    def _may_take(self, spec: Mapping[str, Any]) -> bool:
        holder = spec.get("holderIdentity")
        if holder == self._settings.identity:
            return True
        if self._renewed_at is not None:
            self._renewed_at = None  # taken while this one was held up
        now = self._clock()
        seen = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return not holder or now - self._seen_at > float(spec.get("leaseDurationSeconds") or 0)

    def _spec(self, before: Mapping[str, Any]) -> Json:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        same = before.get("holderIdentity") == self._settings.identity
        return {
            "holderIdentity": self._settings.identity,
            "leaseDurationSeconds": max(1, math.ceil(self._settings.lease_s)),
            "acquireTime": before.get("acquireTime") if same else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if same else 1),
        }
