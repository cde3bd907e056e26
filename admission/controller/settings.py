"""The controller's settings: arguments over environment (VCUDA_CONTROLLER_...) over defaults."""

import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vcuda.kube.names import DOMAIN, Names
from vcuda.settings import Domain


def _identity() -> str:
    """Of this process among the replicas: the pod's name, and what tells two processes of one host apart."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"


class ControllerSettings(BaseSettings):
    """What the controller can be told. Durations are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="VCUDA_CONTROLLER_", extra="forbid", frozen=True, env_ignore_empty=True
    )

    domain: Domain = DOMAIN
    policy: Literal["binpack", "spread"] = "binpack"
    """How cards are chosen for pods that say nothing of it."""

    kubeconfig: Path | None = None
    """How to reach the API server; without it the pod's service account, then $KUBECONFIG."""
    namespace: str = "vcuda-system"
    """Of the Lease, and of the Secret and the ConfigMap with the key."""
    lease: str = "vcuda-controller"
    identity: str = Field(default_factory=_identity, min_length=1)
    lease_s: float = Field(default=15.0, gt=0)
    """How long a leader that says nothing more is one to the others."""
    renew_s: float = Field(default=10.0, gt=0)
    """How long one that cannot renew its lease goes on placing."""
    retry_s: float = Field(default=2.0, gt=0)
    """Between renewals, and between looks of those that wait."""
    key: str = "vcuda-placement-key"
    """The name of the Secret with the private key, and of the ConfigMap with the public one."""

    patches: int = Field(default=8, ge=1, le=256)
    """Placements that are written at the same time; those of one queue always one after the other."""
    batch: int = Field(default=256, ge=1)
    """Placements that are decided at once."""
    request_s: float = Field(default=10.0, gt=0)
    """For an answer of the API server; that of a placement is waited for no longer than the lease allows."""
    back_off_s: float = Field(default=5.0, gt=0)
    """The longest pause between attempts at an API server that does not answer."""
    watch_s: float = Field(default=60.0, gt=0)
    """How long one watch is; then it goes on from where it was, so that a dead connection is noticed."""
    refused_s: float = Field(default=60.0, gt=0)
    """After which a pod whose placement the API refused is tried again."""

    unbound_s: float = Field(default=300.0, ge=0)
    """After which a placed pod that the scheduler cannot bind is evicted, if it has an owner that makes it
    anew, and told so else; 0: never."""

    tell_s: float = Field(default=2.0, ge=0)
    """The least time between two conditions written on one pod."""
    patience_s: float = Field(default=1.0, ge=0)
    """A pod that waits no longer than this is not told that it waits."""

    metrics_host: str = ""
    """The address of /metrics; empty: all of IPv4."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """0: none."""

    @property
    def names(self) -> Names:
        """All names under the domain."""
        return Names(domain=self.domain)

    @property
    def patch_s(self) -> float:
        """For the answer to a placement: one that is sent while the lease is sure is done before it ends."""
        return min(self.request_s, 0.8 * (self.lease_s - self.renew_s))

    @model_validator(mode="after")
    def _in_order(self) -> "ControllerSettings":
        if not self.retry_s < self.renew_s < self.lease_s:
            raise ValueError(
                f"retry_s {self.retry_s:g}, renew_s {self.renew_s:g}, lease_s {self.lease_s:g}: "
                "each must be less than the next"
            )
        return self
