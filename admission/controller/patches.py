"""What is written on pods, as the bodies of patches. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from vcuda.apiserver import Json
from vcuda.kube.asks import mapping
from vcuda.kube.eligibility import objects
from vcuda.kube.names import Names
from vcuda.kube.pods import condition_of

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_MESSAGE_CHARACTERS = 1000
"""The API takes 1024 of an event's note."""


def placement_patch(pod: Mapping[str, Any], *, names: Names, node: str, placement: str) -> Json:
    """A merge patch that places a pod: all of it or, if the pod is another one by now, nothing.

    Its version and uid are preconditions. The affinity is narrowed to the node, as the API allows for gated
    pods: every term that could hold gets one requirement more, and where there was none, one term is made.
    """
    metadata, spec = mapping(pod.get("metadata")), mapping(pod.get("spec"))
    required = mapping(mapping(mapping(spec.get("affinity")).get("nodeAffinity")).get(_REQUIRED))
    only = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = [_narrowed(term, only) for term in objects(required.get("nodeSelectorTerms"))]
    return {
        "metadata": {
            "uid": metadata.get("uid"),
            "resourceVersion": metadata.get("resourceVersion"),
            "annotations": {names.placement: placement},
        },
        "spec": {
            "affinity": {
                "nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": terms or [{"matchFields": [only]}]}}
            },
            "schedulingGates": [
                dict(gate) for gate in objects(spec.get("schedulingGates")) if gate.get("name") != names.gate
            ],
        },
    }


def condition_patch(
    pod: Mapping[str, Any], *, names: Names, placed: bool, reason: str, message: str
) -> Json | None:
    """A strategic merge patch of a pod's status with our condition; None if it says so already."""
    status = "True" if placed else "False"
    message = shortened(message)
    before = condition_of(pod, names)
    if (before.get("status"), before.get("reason"), before.get("message")) == (status, reason, message):
        return None
    since = before.get("lastTransitionTime") if before.get("status") == status else _now("seconds")
    return {
        "metadata": {"uid": mapping(pod.get("metadata")).get("uid")},
        "status": {
            "conditions": [
                {
                    "type": names.condition,
                    "status": status,
                    "reason": reason,
                    "message": message,
                    "lastTransitionTime": since,
                }
            ]
        },
    }


def event_of(
    pod: Mapping[str, Any], *, name: str, instance: str, reason: str, note: str, warning: bool
) -> Json:
    """An Event about a pod (events.k8s.io/v1)."""
    metadata = mapping(pod.get("metadata"))
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{str(metadata.get('name'))[:200]}.{name}",
            "namespace": metadata.get("namespace"),
        },
        "eventTime": _now("microseconds"),
        "reportingController": "vcuda-controller",
        "reportingInstance": instance[:128],
        "action": "Placing",
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "note": shortened(note),
        "regarding": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": metadata.get("namespace"),
            "name": metadata.get("name"),
            "uid": metadata.get("uid"),
        },
    }


def shortened(text: str) -> str:
    """What fits into a message."""
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[: _MESSAGE_CHARACTERS - 3]}..."


def _narrowed(term: Mapping[str, Any], only: Mapping[str, Any]) -> Json:
    """A term with one requirement more. One without any holds nowhere, and must go on so."""
    fields = objects(term.get("matchFields"))
    if not fields and not objects(term.get("matchExpressions")):
        return dict(term)
    return {**term, "matchFields": [*map(dict, fields), dict(only)]}


def _now(precision: str) -> str:
    return datetime.now(UTC).isoformat(timespec=precision).replace("+00:00", "Z")
