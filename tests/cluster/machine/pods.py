"""Pods for tests: a builder, and waiting for what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightkube
from lightkube.core.exceptions import ApiError
from lightkube.models.core_v1 import PodCondition
from lightkube.resources.core_v1 import Event, Pod

from tests.cluster.machine.errors import ClusterError, until

_GONE = 404


def pod(
    name: str,
    *command: str,
    image: str = "busybox:test",
    resources: Mapping[str, str | int] | None = None,
    gates: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    namespace: str = "default",
    containers: Sequence[Mapping[str, Any]] | None = None,
    **spec: Any,
) -> Pod:
    """A pod of one container `main` that runs `command`, or sleeps if there is none; never restarted.

    `resources` are requests and limits alike. `containers` replaces that one, `spec` goes over the rest.
    """
    main: dict[str, Any] = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "command": list(command) or ["sleep", "3600"],
        "env": [{"name": key, "value": value} for key, value in (env or {}).items()],
    }
    if resources:
        amounts = {key: str(value) for key, value in resources.items()}
        main["resources"] = {"requests": amounts, "limits": amounts}
    manifest: dict[str, Any] = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": dict(labels or {}),
            "annotations": dict(annotations or {}),
        },
        "spec": {
            "containers": [dict(each) for each in containers] if containers else [main],
            "schedulingGates": [{"name": gate} for gate in gates],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,  # 0 would take it out of the API before its containers end
            **spec,
        },
    }
    return cast(Pod, Pod.from_dict(manifest))


def get(client: lightkube.Client, name: str, *, namespace: str = "default") -> Pod:
    return client.get(Pod, name, namespace=namespace)


def condition(of: Pod, kind: str) -> PodCondition | None:
    """The pod's condition of this type, such as PodScheduled."""
    conditions = (of.status.conditions if of.status else None) or []
    return next((each for each in conditions if each.type == kind), None)


def wait_phase(
    client: lightkube.Client, name: str, phase: str, *, namespace: str = "default", timeout_s: float = 60
) -> Pod:
    """The pod, once it is in this phase.

    Raises:
        ClusterError: It ended in another one, or time ran out; with its status and events.
    """

    def reached() -> Pod | None:
        found = get(client, name, namespace=namespace)
        now = found.status.phase if found.status else None
        if now in ("Succeeded", "Failed") and now != phase:
            raise ClusterError(
                f"pod {namespace}/{name}: {now}, not {phase}: {_story(client, name, namespace)}"
            )
        return found if now == phase else None

    try:
        return until(f"pod {namespace}/{name}: {phase}", reached, timeout_s=timeout_s)
    except ClusterError as error:
        raise ClusterError(f"{error}: {_story(client, name, namespace)}") from error


def log(client: lightkube.Client, name: str, *, namespace: str = "default", container: str = "main") -> str:
    """What the container wrote so far."""
    return "".join(client.log(name, namespace=namespace, container=container))


def delete(client: lightkube.Client, *names: str, namespace: str = "default", timeout_s: float = 60) -> None:
    """Delete pods and wait until they are gone; one that is gone already is no error.

    Raises:
        ClusterError: One is still there after `timeout_s` seconds.
    """
    for name in names:
        _unless_gone(lambda name=name: client.delete(Pod, name, namespace=namespace))
    for name in names:
        until(
            f"pod {namespace}/{name}: gone",
            lambda name=name: _unless_gone(lambda: get(client, name, namespace=namespace)) is None,
            timeout_s=timeout_s,
        )


def _story(client: lightkube.Client, name: str, namespace: str) -> str:
    """A pod's status and events in one line, for messages."""
    found = _unless_gone(lambda: get(client, name, namespace=namespace))
    if found is None:
        return "it is gone"
    status: dict[str, Any] = found.status.to_dict() if found.status else {}
    events = client.list(Event, namespace=namespace, fields={"involvedObject.name": name})
    told = "; ".join(f"{each.reason}: {each.message}" for each in events)
    return f"status {status}; events: {told or 'none'}"


def _unless_gone(ask: Any) -> Any:
    try:
        return ask()
    except ApiError as error:
        if error.status.code != _GONE:
            raise
        return None
