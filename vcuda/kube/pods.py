"""What matters of a pod to those who queue, place and explain: read once from the API's JSON. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vcuda.kube.asks import AskError, PodAsk, asked_of, mapping
from vcuda.kube.eligibility import Amounts, Rules, amounts_of, objects, rules_of
from vcuda.kube.names import Names

Arrival = tuple[int, int, str]
"""Creation in the API's seconds, the webhook's stamp in ns, uid: on this order all replicas agree."""


@dataclass(frozen=True, kw_only=True)
class PodFacts:
    """A pod that asks for shares."""

    uid: str
    namespace: str
    name: str
    queue: str
    arrival: Arrival
    gated: bool
    """Waits for its placement."""
    other_gates: tuple[str, ...]
    over: bool
    """Its containers have ended and will not start again: it holds nothing."""
    leaving: bool
    """It is being deleted."""
    node: str | None
    """To which it is bound."""
    placement: str | None
    """The annotation, whoever wrote it."""
    ask: PodAsk
    """Empty, where `fault` says what is wrong with it."""
    fault: str
    rules: Rules
    amounts: Amounts

    @property
    def who(self) -> str:
        """As people write it."""
        return f"{self.namespace}/{self.name}"

    @property
    def waits(self) -> bool:
        """It stands in a queue: gated, not over, and not on its way out."""
        return self.gated and not self.over and not self.leaving and self.node is None


def pod_facts(pod: Mapping[str, Any], names: Names) -> PodFacts:
    """Read a pod as the API writes it in JSON. What cannot be is told in `fault`, never raised."""
    metadata, spec = mapping(pod.get("metadata")), mapping(pod.get("spec"))
    annotations, labels = mapping(metadata.get("annotations")), mapping(metadata.get("labels"))
    uid, namespace = str(metadata.get("uid")), str(metadata.get("namespace"))
    gates = [str(gate.get("name")) for gate in objects(spec.get("schedulingGates"))]
    fault, ask = "", PodAsk(containers=())
    try:
        ask = asked_of(pod, names)
        if not ask.containers:
            fault = f"no container asks for {names.core} or {names.memory}"
    except AskError as error:
        fault = str(error)
    return PodFacts(
        uid=uid,
        namespace=namespace,
        name=str(metadata.get("name")),
        queue=f"{namespace}/{labels[names.queue]}" if labels.get(names.queue) else namespace,
        arrival=(
            _seconds(metadata.get("creationTimestamp")),
            _stamp(annotations.get(names.arrival)),
            uid,
        ),
        gated=names.gate in gates,
        other_gates=tuple(gate for gate in gates if gate != names.gate),
        over=mapping(pod.get("status")).get("phase") in ("Succeeded", "Failed"),
        leaving=bool(metadata.get("deletionTimestamp")),
        node=spec.get("nodeName") or None,
        placement=annotations.get(names.placement),
        ask=ask,
        fault=fault,
        rules=rules_of(pod),
        amounts=amounts_of(pod, names),
    )


def condition_of(pod: Mapping[str, Any], names: Names) -> Mapping[str, Any]:
    """What the controller says on a pod; empty, if nothing yet."""
    nothing: Mapping[str, Any] = {}
    conditions = objects(mapping(pod.get("status")).get("conditions"))
    return next((each for each in conditions if each.get("type") == names.condition), nothing)


def _seconds(text: str | None) -> int:
    try:
        return int(datetime.fromisoformat(text or "").timestamp())
    except ValueError:
        return 0


def _stamp(text: str | None) -> int:
    """The webhook's stamp; a pod without one came before there was a webhook to stamp it."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) <= 20 else 0
