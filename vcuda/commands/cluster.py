"""What `vcuda queue` and `vcuda explain` read of a Kubernetes cluster: pods that ask for shares, nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcuda.errors import VcudaError

if TYPE_CHECKING:
    import httpx2

    from vcuda.kube.names import Names
    from vcuda.kube.pods import PodFacts

Json = Mapping[str, Any]
Function = TypeVar("Function", bound=Callable[..., object])

_PAGE = 500
_TIMEOUT_S = 30.0
ASIDE = ("Unmeetable", "InvalidRequest", "OtherGates")
"""Reasons in our condition of pods that wait and stand in nobody's way."""


class NotAllowedError(VcudaError):
    """Who asks may not read this."""


def cluster_options(function: Function) -> Function:
    """--kubeconfig and --domain."""
    kubeconfig = click.option(
        "--kubeconfig",
        type=click.Path(dir_okay=False),
        help="How to reach the cluster; else as kubectl does.",
    )
    domain = click.option(
        "--domain",
        envvar="VCUDA_DOMAIN",
        help="The prefix of vcuda's resources in this cluster.  [default: vcuda.dev]",
    )
    return kubeconfig(domain(function))


def names_of(domain: str | None) -> Names:
    """All names under a cluster's prefix."""
    from vcuda.kube.names import DOMAIN, Names

    return Names(domain=domain or DOMAIN)


class Reader:
    """Reads objects of a cluster, as JSON."""

    def __init__(self, kubeconfig: str | None) -> None:
        """Find the cluster as kubectl does, or from inside a pod.

        Raises:
            VcudaError: there is no way to one, or what this needs is not installed.

        """
        try:
            from lightkube import KubeConfig
            from lightkube.config.client_adapter import Client, ConnectionParams
            from lightkube.core.exceptions import ConfigError
        except ImportError as error:
            raise VcudaError(
                f"{error.name} is not installed, which is needed for Kubernetes; pip install 'vcuda[kube]'"
            ) from error
        try:
            found = KubeConfig.from_env() if kubeconfig is None else KubeConfig.from_file(kubeconfig)
            config = found.get()
        except (ConfigError, OSError, KeyError) as error:
            raise VcudaError(f"no way to a cluster: {error}; set KUBECONFIG or give --kubeconfig") from error
        if config is None:
            raise VcudaError("no way to a cluster: the kubeconfig names none; give another one")
        self.namespace = config.namespace
        """That the kubeconfig names; where commands look if nothing else is said."""
        self._http: httpx2.Client = Client(config, ConnectionParams())

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def one(self, path: str) -> Json | None:
        """One object; None if it is not there.

        Raises:
            VcudaError: it could not be read; NotAllowedError: that is not allowed.

        """
        return self._get(path, {})

    def every(self, path: str, **params: str) -> list[Json]:
        """All objects of a collection.

        Raises:
            VcudaError: they could not be read; NotAllowedError: that is not allowed.

        """
        items: list[Json] = []
        more = ""
        while True:
            page = self._get(path, {**params, "limit": str(_PAGE), **({"continue": more} if more else {})})
            found: Sequence[Json] = (page or {}).get("items") or ()
            items.extend(found)
            metadata: Json = (page or {}).get("metadata") or {}
            more = str(metadata.get("continue") or "")
            if not more:
                return items

    def _get(self, path: str, params: Mapping[str, str]) -> Json | None:
        import json

        import httpx2

        try:
            answer = self._http.get(path, params=params, timeout=_TIMEOUT_S)
        except httpx2.HTTPError as error:
            raise VcudaError(f"the API server does not answer: {error or type(error).__name__}") from error
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return None
        try:
            found: Json = json.loads(answer.content)
        except ValueError:
            found = {}
        if answer.is_error:
            message = " ".join(str(found.get("message") or answer.reason_phrase).split())
            kind = NotAllowedError if answer.status_code == HTTPStatus.FORBIDDEN else VcudaError
            raise kind(f"the API server answers {answer.status_code}: {message}")
        return found


def managed_pods(
    reader: Reader, names: Names, *, namespace: str | None = None
) -> list[tuple[Json, PodFacts]]:
    """The pods that ask for shares, in order of arrival.

    Raises:
        VcudaError: they could not be read.

    """
    from vcuda.kube.pods import pod_facts

    path = "/api/v1/pods" if namespace is None else f"/api/v1/namespaces/{namespace}/pods"
    found = [
        (pod, pod_facts(pod, names)) for pod in reader.every(path, labelSelector=f"{names.managed}=true")
    ]
    return sorted(found, key=lambda each: each[1].arrival)


def positions(pods: Sequence[tuple[Json, PodFacts]], names: Names) -> dict[str, int]:
    """Of each pod that waits in a queue its place there, from 1, by uid; those that stand aside have none."""
    from vcuda.kube.pods import condition_of

    found: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for pod, facts in pods:
        if facts.waits and condition_of(pod, names).get("reason") not in ASIDE:
            lengths[facts.queue] = lengths.get(facts.queue, 0) + 1
            found[facts.uid] = lengths[facts.queue]
    return found
