"""An AdmissionReview in, an AdmissionReview out: the webhook's whole answer to one request. Pure.

The forms are those of admission.k8s.io/v1. Whatever is not one, or not about a pod that is being created, is
refused with ReviewError: nothing but the API server with our own configuration has business here.
"""

import base64
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from admission.aliases import Rules
from admission.mutate import admitted
from admission.patch import difference
from vcuda.errors import VcudaError

MOST_FAULTS = 64
"""That one answer tells; who has more mends these first."""


class ReviewError(VcudaError):
    """A request is none that this webhook answers."""


class Verdict(StrEnum):
    """How a request was answered."""

    PATCHED = "patched"
    UNTOUCHED = "untouched"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one request."""

    body: bytes
    """An AdmissionReview, JSON."""
    verdict: Verdict
    pod: str
    """NAMESPACE/NAME, for the log."""
    message: str = ""
    """Why it was refused."""
    aliases: tuple[str, ...] = ()


class _Kind(BaseModel):
    group: str = ""
    version: str
    kind: str


class _Request(BaseModel):
    uid: str = Field(min_length=1, max_length=256)
    kind: _Kind
    operation: str
    subresource: str = Field(default="", alias="subResource")
    name: str = ""
    namespace: str = ""
    object: dict[str, Any] | None = None


class _Review(BaseModel):
    """The part of an AdmissionReview that is read."""

    model_config = ConfigDict(extra="ignore")

    api_version: Literal["admission.k8s.io/v1"] = Field(alias="apiVersion")
    kind: Literal["AdmissionReview"]
    request: _Request


def answer(body: bytes, *, rules: Rules, now_ns: int) -> Answer:
    """The answer to a request's body; now_ns: ns since 1970.

    Raises:
        ReviewError: it is no review of a pod's creation.

    """
    request = _read(body)
    pod = request.object or {}
    done = admitted(pod, rules=rules, now_ns=now_ns)
    response: dict[str, Any] = {"uid": request.uid, "allowed": not done.faults}
    verdict, message = Verdict.UNTOUCHED, ""
    if done.faults:
        verdict, message = Verdict.REFUSED, _told(done.faults)
        response["status"] = {"code": 422, "reason": "Invalid", "message": message}
    elif done.pod is not None:
        patch = list(difference(pod, done.pod))
        verdict = Verdict.PATCHED
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(patch, separators=(",", ":")).encode()).decode()
        if done.warnings:
            response["warnings"] = list(done.warnings)
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    return Answer(
        body=json.dumps(review, separators=(",", ":")).encode(),
        verdict=verdict,
        pod=f"{request.namespace}/{request.name or _generated(pod)}",
        message=message,
        aliases=done.aliases,
    )


def _read(body: bytes) -> _Request:
    try:
        request = _Review.model_validate_json(body).request
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ReviewError(
            f"{where}: {first['msg']}; this webhook answers AdmissionReview of admission.k8s.io/v1"
        ) from error
    kind = request.kind
    if (kind.group, kind.version, kind.kind) != ("", "v1", "Pod") or request.subresource:
        what = f"{kind.group}/{kind.version} {kind.kind}".lstrip("/") + (
            f" ({request.subresource})" if request.subresource else ""
        )
        raise ReviewError(f"request.kind: {what}: must be v1 Pod; see the rules of the webhook configuration")
    if request.operation != "CREATE":
        raise ReviewError(
            f"request.operation: {request.operation}: must be CREATE; see the webhook configuration"
        )
    if request.object is None:
        raise ReviewError("request.object: must be the pod that is being created")
    return request


def _told(faults: tuple[str, ...]) -> str:
    more = len(faults) - MOST_FAULTS
    return "; ".join(faults[:MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "")


def _generated(pod: dict[str, Any]) -> str:
    metadata = pod.get("metadata")
    name = metadata.get("generateName") if isinstance(metadata, dict) else None  # pyright: ignore
    return f"{name}*" if isinstance(name, str) else "?"
