"""Pods as users write them, reviews of them, and patches applied, for tests of admission."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any


def pod(
    *limits: Mapping[str, str],
    requests: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    gates: Sequence[str] = (),
    node: str | None = None,
) -> dict[str, Any]:
    """A pod with a container for each of these limits, all with the same requests."""
    metadata: dict[str, Any] = {"name": "pod"}
    spec: dict[str, Any] = {
        "containers": [
            {
                "name": f"main-{index}",
                "resources": {"limits": dict(each), **({"requests": dict(requests)} if requests else {})},
            }
            for index, each in enumerate(limits)
        ]
    }
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    if gates:
        spec["schedulingGates"] = [{"name": gate} for gate in gates]
    if node is not None:
        spec["nodeName"] = node
    return {"metadata": metadata, "spec": spec}


def review(object_: Any, **request: Any) -> bytes:
    """An AdmissionReview of a pod's creation, as the API server sends it."""
    return json.dumps(
        {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "uid-1",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "name": "pod",
                "namespace": "default",
                "operation": "CREATE",
                "userInfo": {"username": "alice"},
                "object": object_,
                "oldObject": None,
                "dryRun": False,
                "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
                **request,
            },
        }
    ).encode()


def patched(document: Any, patch: Sequence[Mapping[str, Any]]) -> Any:
    """A copy of a document after a JSON patch (RFC 6902); AssertionError where the patch does not fit it."""
    whole = {"": copy.deepcopy(document)}
    for operation in patch:
        assert set(operation) <= {"op", "path", "value"}
        *path, last = ["", *(_unescaped(part) for part in operation["path"].split("/")[1:])]
        target: Any = whole
        for part in path:
            target = target[int(part)] if isinstance(target, list) else target[part]
        match operation["op"]:
            case "add" if isinstance(target, list):
                assert last == "-", "only appending is needed"
                target.append(copy.deepcopy(operation["value"]))
            case "add":
                target[last] = copy.deepcopy(operation["value"])
            case "replace":
                key = int(last) if isinstance(target, list) else last
                assert key in (range(len(target)) if isinstance(target, list) else target)
                target[key] = copy.deepcopy(operation["value"])
            case "remove":
                del target[last]
            case other:
                raise AssertionError(f"operation {other}")
    return whole[""]


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
