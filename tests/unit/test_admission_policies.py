"""What holds at the API server without any server of ours: the expressions of the manifests, evaluated.

Here they meet requests as the API server describes them; on a real one in tests/cluster/test_admission.py.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import celpy
import pytest
import yaml
from celpy import celtypes

from admission.aliases import Rules
from admission.mutate import admitted
from tests import admission_support as pods
from vcuda.kube.names import ALIASES, Names

BASE = Path(__file__).parents[2] / "manifests" / "base"
NAMES = Names()
CORE, MEMORY = NAMES.core, NAMES.memory
ALICE = {"username": "alice", "groups": ["system:authenticated"]}
CONTROLLER = {"username": "system:serviceaccount:vcuda-system:vcuda-controller"}
KUBELET = {"username": "system:node:node-1", "groups": ["system:nodes"]}
NODE_NAME = "authentication.kubernetes.io/node-name"


def agent(node: str | None) -> dict[str, Any]:
    extra = {} if node is None else {"extra": {NODE_NAME: [node], "other": ["x"]}}
    return {"username": "system:serviceaccount:vcuda-system:vcuda-node", **extra}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((BASE / name).read_text()))


def named(file: str, kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in documents(file) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@functools.cache
def program(expression: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def evaluated(expression: str, context: dict[str, Any], variables: dict[str, Any] | None = None) -> Any:
    """What an expression says of these objects, and of the variables that were evaluated before it."""
    known = {name: celpy.json_to_cel(value) for name, value in context.items()}
    known["variables"] = celtypes.MapType(
        {celtypes.StringType(name): value for name, value in (variables or {}).items()}
    )
    return program(expression).evaluate(known)


class Policy:
    """A ValidatingAdmissionPolicy."""

    def __init__(self, file: str, name: str) -> None:
        self.spec = named(file, "ValidatingAdmissionPolicy", name)["spec"]

    def matches(self, context: dict[str, Any]) -> bool:
        return all(
            bool(evaluated(each["expression"], context)) for each in self.spec.get("matchConditions", ())
        )

    def refusals(
        self,
        object_: Any,
        old: Any = None,
        *,
        user: dict[str, Any] = ALICE,
        subresource: str = "",
    ) -> list[str]:
        """The messages of all validations that fail, in order; none where the policy does not match."""
        request: dict[str, Any] = {"operation": "CREATE" if old is None else "UPDATE", "userInfo": user}
        if subresource:
            request["subResource"] = subresource
        context = {"object": object_, "oldObject": old, "request": request}
        if not self.matches(context):
            return []
        variables: dict[str, Any] = {}
        for each in self.spec.get("variables", ()):
            variables[each["name"]] = evaluated(each["expression"], context, variables)
        return [
            each["message"]
            for each in self.spec["validations"]
            if not evaluated(each["expression"], context, variables)
        ]


PODS = Policy("policy-pods.yaml", "vcuda-pods")
BINDINGS = Policy("policy-pods.yaml", "vcuda-bindings")
NODES = Policy("policy-nodes.yaml", "vcuda-nodes")
SHARE = {CORE: "30", MEMORY: "8"}


def admitted_pod(limits: dict[str, str] = SHARE) -> dict[str, Any]:
    """A pod after the webhook."""
    done = admitted(pods.pod(limits), rules=Rules(), now_ns=1).pod
    assert done is not None
    return done


def changed(pod: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with other labels, annotations, gates or node; None takes one away."""
    after = copy.deepcopy(pod)
    for field in ("labels", "annotations"):
        for name, value in changes.get(field, {}).items():
            if value is None:
                after["metadata"].get(field, {}).pop(name, None)
            else:
                after["metadata"].setdefault(field, {})[name] = value
    if "gates" in changes:
        after["spec"]["schedulingGates"] = [{"name": gate} for gate in changes["gates"]]
        if not changes["gates"]:
            del after["spec"]["schedulingGates"]
    if "node" in changes:
        after["spec"]["nodeName"] = changes["node"]
    return after


def begins(messages: list[str], *beginnings: str) -> None:
    assert [message[: len(begin)] for message, begin in zip(messages, beginnings, strict=False)] == list(
        beginnings
    )
    assert len(messages) == len(beginnings)


ASKS = [
    ("vcuda's cores", pods.pod(SHARE), True),
    ("one container of three", pods.pod({}, {"cpu": "1"}, {MEMORY: "8"}), True),
    ("a request alone", pods.pod({}, requests={MEMORY: "8"}), True),
    *[(f"an alias: {name}", pods.pod({name: "8"}), True) for name in ALIASES],
    (
        "an init container",
        {
            "metadata": {},
            "spec": {
                "containers": [{"name": "main"}],
                "initContainers": [{"name": "init", "resources": {"limits": {MEMORY: "8"}}}],
            },
        },
        True,
    ),
    ("nothing", {"metadata": {}, "spec": {"containers": [{"name": "main"}]}}, False),
    ("empty resources", {"metadata": {}, "spec": {"containers": [{"name": "main", "resources": {}}]}}, False),
    ("other resources", pods.pod({"cpu": "1", "nvidia.com/gpu": "1"}), False),
    ("zeros", pods.pod({CORE: "0", MEMORY: "0", "aliyun.com/gpu-mem": "0"}), False),
    ("our label and annotations alone", changed(pods.pod({}), labels={NAMES.managed: "true"}), False),
]


@pytest.mark.parametrize(("pod", "asks"), [case[1:] for case in ASKS], ids=[case[0] for case in ASKS])
def test_webhook_and_policy_are_about_pods_that_ask_alone(pod: dict[str, Any], asks: bool) -> None:
    (webhook,) = named("webhook.yaml", "MutatingWebhookConfiguration", "vcuda-admission")["webhooks"]
    (condition,) = webhook["matchConditions"]
    context = {"object": pod, "oldObject": None, "request": {"operation": "CREATE", "userInfo": ALICE}}
    assert bool(evaluated(condition["expression"], context)) == asks
    assert PODS.matches(context) == asks
    assert (admitted(pod, rules=Rules(), now_ns=1) != admitted({}, rules=Rules(), now_ns=1)) == asks


def test_pod_from_the_webhook_is_created() -> None:
    for limits in (SHARE, {MEMORY: "8"}, {"aliyun.com/gpu-mem": "8065"}, {"tencent.com/vcuda-core": "200"}):
        assert PODS.refusals(admitted_pod(limits)) == []


@pytest.mark.parametrize(
    ("pod", "refusals"),
    [
        (pods.pod(SHARE), ["spec.schedulingGates, metadata: gate"]),
        (
            pods.pod({"aliyun.com/gpu-mem": "8065"}),
            ["spec.containers[].resources: tencent", "spec.schedulingGates, metadata: gate"],
        ),
        (changed(admitted_pod(), gates=[]), ["spec.schedulingGates, metadata: gate"]),
        (changed(admitted_pod(), gates=["example.com/other"]), ["spec.schedulingGates, metadata: gate"]),
        (changed(admitted_pod(), labels={NAMES.managed: None}), ["spec.schedulingGates, metadata: gate"]),
        (changed(admitted_pod(), labels={NAMES.managed: "false"}), ["spec.schedulingGates, metadata: gate"]),
        (
            changed(admitted_pod(), annotations={NAMES.arrival: None}),
            ["spec.schedulingGates, metadata: gate"],
        ),
        (
            changed(admitted_pod(), annotations={NAMES.placement: "x"}),
            ["metadata.annotations[vcuda.dev/placement]: is written"],
        ),
        (changed(admitted_pod(), node="node-1"), ["spec.nodeName: must not be set"]),
        (
            changed(pods.pod(SHARE), node="node-1", annotations={NAMES.placement: "x"}),
            [
                "spec.schedulingGates, metadata: gate",
                "metadata.annotations[vcuda.dev/placement]: is written",
                "spec.nodeName: must not be set",
            ],
        ),
    ],
    ids=[
        "past the webhook",
        "an alias past the webhook",
        "no gate",
        "another gate",
        "no label",
        "the label's opposite",
        "no arrival",
        "a placement",
        "a node",
        "all of it",
    ],
)
@pytest.mark.parametrize("user", [ALICE, CONTROLLER, KUBELET], ids=["alice", "controller", "kubelet"])
def test_pod_that_others_made_up_is_refused(
    pod: dict[str, Any], refusals: list[str], user: dict[str, Any]
) -> None:
    begins(PODS.refusals(pod, user=user), *refusals)


PLACED = changed(admitted_pod(), gates=[], annotations={NAMES.placement: "signed"})
GATE = "spec.schedulingGates: vcuda.dev/placement is taken off"
ANNOTATIONS = "metadata.annotations: vcuda.dev/placement and vcuda.dev/arrival"
LABEL = "metadata.labels[vcuda.dev/managed]: is set"


@pytest.mark.parametrize(
    ("before", "after", "refusals"),
    [
        (admitted_pod(), changed(admitted_pod(), gates=[]), [GATE]),
        (admitted_pod(), changed(admitted_pod(), annotations={NAMES.placement: "x"}), [ANNOTATIONS]),
        (admitted_pod(), PLACED, [GATE, ANNOTATIONS]),
        (PLACED, changed(PLACED, annotations={NAMES.placement: "other"}), [ANNOTATIONS]),
        (PLACED, changed(PLACED, annotations={NAMES.placement: None}), [ANNOTATIONS]),
        (PLACED, changed(PLACED, gates=[NAMES.gate]), [GATE]),
        (admitted_pod(), changed(admitted_pod(), annotations={NAMES.arrival: "0"}), [ANNOTATIONS]),
        (admitted_pod(), changed(admitted_pod(), annotations={NAMES.arrival: None}), [ANNOTATIONS]),
        (admitted_pod(), changed(admitted_pod(), labels={NAMES.managed: "false"}), [LABEL]),
        (admitted_pod(), changed(admitted_pod(), labels={NAMES.managed: None}), [LABEL]),
        (pods.pod(SHARE), changed(pods.pod(SHARE), labels={NAMES.managed: "true"}), [LABEL]),
    ],
    ids=[
        "the gate taken off",
        "a placement written",
        "placed",
        "the placement changed",
        "the placement taken away",
        "the gate put back",
        "the arrival changed",
        "the arrival taken away",
        "the label changed",
        "the label taken away",
        "the label put on a pod from before us",
    ],
)
@pytest.mark.parametrize("subresource", ["", "status"])
def test_what_is_the_controller_s_only_the_controller_changes(
    before: dict[str, Any], after: dict[str, Any], refusals: list[str], subresource: str
) -> None:
    for user in (
        ALICE,
        KUBELET,
        {"username": "system:serviceaccount:team:vcuda-controller"},
        agent("node-1"),
    ):
        begins(PODS.refusals(after, before, user=user, subresource=subresource), *refusals)
    assert PODS.refusals(after, before, user=CONTROLLER, subresource=subresource) == []


@pytest.mark.parametrize(
    "pod", [admitted_pod(), PLACED, pods.pod(SHARE), pods.pod({"aliyun.com/gpu-mem": "1"})]
)
def test_everything_else_of_a_pod_everybody_changes(pod: dict[str, Any]) -> None:
    after = changed(pod, labels={"app": "x"}, annotations={"note": "y", NAMES.priority: "low"})
    for user in (ALICE, KUBELET, CONTROLLER):
        assert PODS.refusals(after, pod, user=user) == []
        assert PODS.refusals(changed(pod, node="node-1"), pod, user=user, subresource="status") == []


def test_pod_that_does_not_ask_may_say_what_it_likes() -> None:
    plain = pods.pod({"cpu": "1"})
    named_so = changed(plain, labels={NAMES.managed: "true"}, annotations={NAMES.placement: "x"}, node="n")
    assert PODS.refusals(named_so) == []
    assert PODS.refusals(plain, named_so) == []


def test_policy_sees_every_way_to_a_pod_s_metadata() -> None:
    rules = PODS.spec["matchConstraints"]["resourceRules"]
    assert [(rule["operations"], rule["resources"]) for rule in rules] == [
        (["CREATE", "UPDATE"], ["pods"]),
        (["UPDATE"], ["pods/status", "pods/ephemeralcontainers", "pods/resize"]),
    ]


@pytest.mark.parametrize(
    ("metadata", "refused"),
    [
        ({}, False),
        ({"annotations": {"note": "x"}, "labels": {"topology.kubernetes.io/zone": "a"}}, False),
        ({"annotations": {NAMES.placement: "x"}}, True),
        ({"labels": {NAMES.managed: "false"}}, True),
    ],
    ids=str,
)
def test_binding_cannot_write_what_is_vcuda_s(metadata: dict[str, Any], refused: bool) -> None:
    binding = {"metadata": {"name": "pod", **metadata}, "target": {"kind": "Node", "name": "node-1"}}
    assert len(BINDINGS.refusals(binding)) == refused
    assert BINDINGS.refusals({"target": {}}) == []


def node(name: str = "node-1", *, labels: dict[str, str] | None = None, **annotations: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if annotations:
        metadata["annotations"] = {
            f"vcuda.dev/{key}" if key in {"cards", "moved"} else key: value
            for key, value in annotations.items()
        }
    if labels:
        metadata["labels"] = labels
    return {"metadata": metadata, "spec": {"podCIDR": "10.0.0.0/24"}}


OTHERS = "metadata.annotations: vcuda.dev/* of a node"
OWN = "metadata.name: a vcuda-node writes to the node"
ELSE = "metadata, spec: vcuda-node writes annotations"


@pytest.mark.parametrize(
    ("user", "before", "after", "refusals"),
    [
        (agent("node-1"), node(), node(cards="a"), []),
        (agent("node-1"), node(cards="a"), node(cards="b", moved="c"), []),
        (agent("node-1"), node(cards="a", note="x"), node(note="x"), []),
        (agent(None), node(), node(cards="a"), []),
        (agent("node-2"), node(), node(cards="a"), [OWN]),
        (agent("node-1"), node(), node(labels={"a": "b"}), [ELSE]),
        (agent("node-1"), node(), node(note="x"), [ELSE]),
        (agent("node-1"), node(note="x", cards="a"), node(cards="a"), [ELSE]),
        (agent("node-1"), node(), {**node(), "spec": {"unschedulable": True}}, [ELSE]),
        (agent("node-1"), None, node(cards="a"), [ELSE]),
        (KUBELET, node(), node(cards="a"), [OTHERS]),
        (KUBELET, node(cards="a"), node(cards="b"), [OTHERS]),
        (KUBELET, node(cards="a"), node(), [OTHERS]),
        (KUBELET, None, node(cards="a"), [OTHERS]),
        (KUBELET, node(cards="a"), node(cards="a", note="x", labels={"a": "b"}), []),
        (KUBELET, None, node(note="x"), []),
        (CONTROLLER, node(), node(moved="x"), [OTHERS]),
        (ALICE, node(), node(moved="x"), [OTHERS]),
        (ALICE, node(cards="a"), {**node(cards="a"), "spec": {"unschedulable": True}}, []),
    ],
    ids=[
        "the agent publishes",
        "and changes",
        "and takes away",
        "with a token that names no node",
        "on another node",
        "a label",
        "another annotation",
        "another annotation's end",
        "a cordon",
        "a node of its own making",
        "the kubelet publishes",
        "or changes",
        "or takes away",
        "or registers with cards",
        "the kubelet does its own",
        "and registers",
        "the controller",
        "a user",
        "a cordon by a user",
    ],
)
def test_node_s_cards_are_its_agent_s_and_nothing_else_is(
    user: dict[str, Any], before: dict[str, Any] | None, after: dict[str, Any], refusals: list[str]
) -> None:
    begins(NODES.refusals(after, before, user=user), *refusals)


def test_agent_does_not_write_a_node_s_status() -> None:
    begins(NODES.refusals(node(cards="a"), node(), user=agent("node-1"), subresource="status"), ELSE)


def test_manifests_have_the_names_of_the_code() -> None:
    text = "".join((BASE / name).read_text() for name in ("webhook.yaml", "policy-pods.yaml"))
    for name in (CORE, MEMORY, *ALIASES, NAMES.gate, NAMES.managed, NAMES.arrival, NAMES.placement):
        assert name in text
    deployment = named("admission.yaml", "Deployment", "vcuda-admission")
    ports = {
        each["name"]: each["containerPort"]
        for each in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert ports == {"webhook": 8443, "health": 8080}


@pytest.mark.parametrize("policy", ["vcuda-pods", "vcuda-bindings"])
def test_policies_are_bound_and_shut_when_they_fail(policy: str) -> None:
    assert named("policy-pods.yaml", "ValidatingAdmissionPolicy", policy)["spec"]["failurePolicy"] == "Fail"
    binding = named("policy-pods.yaml", "ValidatingAdmissionPolicyBinding", policy)
    assert binding["spec"] == {"policyName": policy, "validationActions": ["Deny"]}


def test_webhook_is_asked_as_it_promises() -> None:
    (webhook,) = named("webhook.yaml", "MutatingWebhookConfiguration", "vcuda-admission")["webhooks"]
    assert {
        key: webhook[key]
        for key in (
            "sideEffects",
            "failurePolicy",
            "timeoutSeconds",
            "reinvocationPolicy",
            "admissionReviewVersions",
        )
    } == {
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 5,
        "reinvocationPolicy": "IfNeeded",
        "admissionReviewVersions": ["v1"],
    }


def test_every_manifest_is_in_the_kustomization() -> None:
    (kustomization,) = documents("kustomization.yaml")
    assert sorted(kustomization["resources"]) == sorted(
        ["../node", *(path.name for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")]
    )


def test_init_container_that_ends_cannot_ask_and_a_sidecar_can() -> None:
    pod = admitted_pod()
    container = {"name": "first", "resources": {"limits": {MEMORY: "8"}}}
    pod["spec"]["initContainers"] = [{**container, "restartPolicy": "Always"}]
    assert PODS.refusals(pod) == []
    pod["spec"]["initContainers"] = [container]
    begins(PODS.refusals(pod), "spec.initContainers[].resources: must not ask")


@pytest.mark.parametrize("subresource", ["", "status", "resize"])
def test_queue_of_a_pod_cannot_be_changed(subresource: str) -> None:
    pod = admitted_pod()
    one = changed(pod, labels={NAMES.queue: "one"})
    for before, after in ((pod, one), (one, pod), (one, changed(pod, labels={NAMES.queue: "two"}))):
        begins(
            PODS.refusals(after, before, subresource=subresource), "metadata.labels[vcuda.dev/queue]: cannot"
        )
    assert PODS.refusals(one, one, subresource=subresource) == []
