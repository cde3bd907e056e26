"""What becomes of a pod at its creation, as the API server gets it to hear."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from admission.aliases import Rules
from admission.mutate import Admitted, admitted
from admission.patch import difference
from admission.review import MOST_FAULTS, ReviewError, Verdict, answer
from tests import admission_support as pods
from vcuda.kube.asks import Ask, asked_of
from vcuda.kube.names import Names

NOW_NS = 1_700_000_000_123_456_789
RULES = Rules()
CORE, MEMORY = "vcuda.dev/vcuda-core", "vcuda.dev/vcuda-memory"
TCORE, TMEMORY = "tencent.com/vcuda-core", "tencent.com/vcuda-memory"
GPU_MEM, GPU_COUNT = "aliyun.com/gpu-mem", "aliyun.com/gpu-count"
RESOURCES = "spec.containers[0].resources"
LIMITS = f"{RESOURCES}.limits"


def admit(pod: dict[str, Any], rules: Rules = RULES) -> Admitted:
    before = json.dumps(pod)
    done = admitted(pod, rules=rules, now_ns=NOW_NS)
    assert json.dumps(pod) == before, "the pod itself was changed"
    return done


def faults_of(pod: dict[str, Any], rules: Rules = RULES) -> list[str]:
    done = admit(pod, rules)
    assert done.pod is None
    return list(done.faults)


def asked_after(limits: dict[str, str], rules: Rules = RULES) -> tuple[int, int]:
    """Cores and units of memory after admission of a pod with these limits."""
    done = admit(pods.pod(limits), rules)
    assert done.faults == ()
    assert done.pod is not None
    (ask,) = asked_of(done.pod, rules.names).containers
    return ask.cores, ask.memory_units


def test_pod_gets_label_arrival_and_gate_and_nothing_else() -> None:
    done = admit(pods.pod({CORE: "40", MEMORY: "24", "cpu": "1"}))
    assert done == Admitted(
        pod={
            "metadata": {
                "name": "pod",
                "labels": {"vcuda.dev/managed": "true"},
                "annotations": {"vcuda.dev/arrival": str(NOW_NS)},
            },
            "spec": {
                "containers": [
                    {
                        "name": "main-0",
                        "resources": {
                            "limits": {CORE: "40", MEMORY: "24", "cpu": "1"},
                            "requests": {CORE: "40", MEMORY: "24"},
                        },
                    }
                ],
                "schedulingGates": [{"name": "vcuda.dev/placement"}],
            },
        }
    )


def test_what_a_pod_has_already_stays() -> None:
    pod = pods.pod({MEMORY: "4"}, labels={"app": "x"}, annotations={"note": "y"}, gates=["example.com/quota"])
    done = admit(pod).pod
    assert done is not None
    assert done["metadata"]["labels"] == {"app": "x", "vcuda.dev/managed": "true"}
    assert done["metadata"]["annotations"] == {"note": "y", "vcuda.dev/arrival": str(NOW_NS)}
    assert done["spec"]["schedulingGates"] == [{"name": "example.com/quota"}, {"name": "vcuda.dev/placement"}]


def test_arrival_that_a_user_wrote_is_overwritten() -> None:
    done = admit(pods.pod({MEMORY: "4"}, annotations={"vcuda.dev/arrival": "1"})).pod
    assert done is not None
    assert done["metadata"]["annotations"] == {"vcuda.dev/arrival": str(NOW_NS)}


@pytest.mark.parametrize(
    "pod",
    [
        pods.pod({"cpu": "1"}),
        pods.pod({}),
        pods.pod({CORE: "0", MEMORY: "0", GPU_MEM: "0", TCORE: "0"}),
        pods.pod({"nvidia.com/gpu": "1"}, annotations={"vcuda.dev/placement": "x"}),
        {},
        {"spec": None},
        {"spec": {"containers": None}},
        {"spec": {"containers": [None, 7, "x", [], {"resources": None}, {"resources": {"limits": "x"}}]}},
    ],
    ids=[
        "other resources",
        "no resources",
        "zeros",
        "another system's cards",
        "nothing at all",
        "no spec",
        "no containers",
        "no objects",
    ],
)
def test_pod_that_does_not_ask_is_left_alone(pod: dict[str, Any]) -> None:
    assert admit(pod) == Admitted(pod=None)


@pytest.mark.parametrize(
    ("limits", "cores", "units"),
    [
        ({CORE: "40", MEMORY: "24"}, 40, 24),
        ({MEMORY: "24"}, 0, 24),
        ({CORE: "100"}, 100, 0),
        ({CORE: "100", MEMORY: "64"}, 100, 64),
        ({CORE: "1k"}, 1000, 0),
        ({CORE: "2e2", MEMORY: "1Ki"}, 200, 1024),
        ({CORE: "0", MEMORY: "4"}, 0, 4),
        ({TCORE: "40", TMEMORY: "24"}, 40, 24),
        ({TCORE: "200"}, 200, 0),
        ({TMEMORY: "24"}, 0, 24),
        ({GPU_MEM: "8065"}, 0, 32),
        ({GPU_MEM: "8064"}, 0, 32),
        ({GPU_MEM: "7937"}, 0, 32),
        ({GPU_MEM: "7936"}, 0, 31),
        ({GPU_MEM: "1"}, 0, 1),
        ({GPU_MEM: "8k"}, 0, 32),
        ({GPU_COUNT: "1"}, 100, 0),
        ({GPU_COUNT: "8"}, 800, 0),
        ({GPU_COUNT: "1", GPU_MEM: "8065"}, 0, 32),
        ({GPU_COUNT: "0", GPU_MEM: "8065"}, 0, 32),
        ({GPU_MEM: "0", GPU_COUNT: "2"}, 200, 0),
        ({TCORE: "0", TMEMORY: "8", CORE: "0"}, 0, 8),
        ({CORE: "30", MEMORY: "8", TCORE: "0", GPU_MEM: "0"}, 30, 8),
    ],
    ids=str,
)
def test_ask_in_any_system_s_resources_becomes_vcuda_s(
    limits: dict[str, str], cores: int, units: int
) -> None:
    assert asked_after(limits) == (cores, units)


@pytest.mark.parametrize(
    ("rules", "limits", "cores", "units"),
    [
        (Rules(aliyun_unit_bytes=2**30), {GPU_MEM: "8"}, 0, 32),
        (Rules(memory_unit_bytes=2**30), {GPU_MEM: "8065"}, 0, 8),
        (Rules(memory_unit_bytes=2**30), {TCORE: "10", TMEMORY: "5"}, 10, 2),
        (Rules(memory_unit_bytes=2**30), {MEMORY: "5"}, 0, 5),
        (Rules(memory_unit_bytes=100 * 2**20), {TMEMORY: "1"}, 0, 3),
    ],
    ids=[
        "gpushare in GiB",
        "units of 1 GiB, gpushare",
        "units of 1 GiB, gpu-manager's stay 256 MiB",
        "units of 1 GiB, vcuda's own",
        "units that divide nothing",
    ],
)
def test_units_are_the_cluster_s(rules: Rules, limits: dict[str, str], cores: int, units: int) -> None:
    assert asked_after(limits, rules) == (cores, units)


def test_aliases_leave_limits_and_requests() -> None:
    pod = pods.pod({GPU_MEM: "8065", GPU_COUNT: "1", "cpu": "2"}, requests={GPU_MEM: "8065", "cpu": "1"})
    done = admit(pod)
    assert done.pod is not None
    assert done.pod["spec"]["containers"][0]["resources"] == {
        "limits": {"cpu": "2", MEMORY: "32"},
        "requests": {"cpu": "1", MEMORY: "32"},
    }
    assert done.aliases == (GPU_MEM, GPU_COUNT)
    assert done.warnings == (f"{LIMITS}[{GPU_MEM}]: 8065: counts as 32 {MEMORY} of 256MiB",)
    assert done.pod["metadata"]["annotations"][Names().memory_bytes] == '{"main-0": 8456765440}'
    assert asked_of(done.pod, Names()).containers[0].bytes_of(2**28) == 8065 * 2**20


def test_request_without_a_limit_becomes_both() -> None:
    done = admit(pods.pod({}, requests={CORE: "30", TCORE: "0", MEMORY: "8"})).pod
    assert done is not None
    resources = done["spec"]["containers"][0]["resources"]
    assert resources == {"limits": {CORE: "30", MEMORY: "8"}, "requests": {CORE: "30", MEMORY: "8"}}


def test_each_container_asks_for_itself_sidecars_too() -> None:
    pod = pods.pod({TCORE: "40", TMEMORY: "24"}, {"cpu": "1"}, {MEMORY: "4"})
    pod["spec"]["initContainers"] = [
        {"name": "init", "resources": {"limits": {"cpu": "2"}}},
        {"name": "sidecar", "restartPolicy": "Always", "resources": {"limits": {GPU_MEM: "256"}}},
    ]
    done = admit(pod).pod
    assert done is not None
    assert asked_of(done, Names()).containers == (
        Ask(container="sidecar", cores=0, memory_units=1),
        Ask(container="main-0", cores=40, memory_units=24),
        Ask(container="main-2", cores=0, memory_units=4),
    )


def test_another_domain_gets_its_own_names() -> None:
    done = admit(pods.pod({TMEMORY: "4"}), Rules(names=Names(domain="gpu.example.com"))).pod
    assert done is not None
    assert done["metadata"]["labels"] == {"gpu.example.com/managed": "true"}
    assert done["spec"]["schedulingGates"] == [{"name": "gpu.example.com/placement"}]
    assert done["spec"]["containers"][0]["resources"]["limits"] == {"gpu.example.com/vcuda-memory": "4"}


INIT = (
    "must not ask for a share, which could not be kept for it; ask in spec.containers, or make it a sidecar "
    "with restartPolicy: Always"
)
NODE = (
    "must not be set, since vcuda's controller chooses the node; "
    "to narrow its choice use spec.nodeSelector or spec.affinity"
)
PLACEMENT = "is written by vcuda's controller alone, which chooses the card; leave it out"
ONE_CARD = (
    f"must be 1 beside {GPU_MEM}, which is a share of one card; for 2 whole cards keep {GPU_COUNT} alone"
)
ONE_KIND = "must be of one kind; keep"


def needs(memory: str) -> str:
    return f"a share of a card needs memory: add {memory} beside it"


BETWEEN_CARDS = "above 100 only whole cards can be asked, 100 or 200"
WHOLE_NUMBER = "must be a whole number from 0 to 999999999"
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "cores without memory": (
        pods.pod({CORE: "30"}),
        [f"{LIMITS}[{CORE}]: 30: {needs(MEMORY)}"],
    ),
    "gpu-manager's cores without memory": (
        pods.pod({TCORE: "30"}),
        [f"{LIMITS}[{TCORE}]: 30: {needs(TMEMORY)}"],
    ),
    "cores between whole cards": (
        pods.pod({CORE: "150", MEMORY: "8"}),
        [f"{LIMITS}[{CORE}]: 150: {BETWEEN_CARDS}"],
    ),
    "gpu-manager's cores between whole cards": (
        pods.pod({TCORE: "250"}),
        [f"{LIMITS}[{TCORE}]: 250: above 100 only whole cards can be asked, 200 or 300"],
    ),
    "gpushare's share of several cards": (
        pods.pod({GPU_MEM: "8065", GPU_COUNT: "2"}),
        [f"{LIMITS}[{GPU_COUNT}]: 2: {ONE_CARD}"],
    ),
    "an alias beside vcuda's own": (
        pods.pod({TCORE: "30", MEMORY: "8"}),
        [f"spec.containers[0].resources: {MEMORY} beside {TCORE}: {ONE_KIND} {MEMORY} alone"],
    ),
    "aliases of two systems": (
        pods.pod({TCORE: "30", TMEMORY: "8", GPU_MEM: "8065"}),
        [f"{RESOURCES}: {TCORE} and {TMEMORY} beside {GPU_MEM}: {ONE_KIND} {TCORE} and {TMEMORY} alone"],
    ),
    "counts that are none": (
        pods.pod({CORE: "500m", MEMORY: "-1"}),
        [f"{LIMITS}[{CORE}]: 500m: {WHOLE_NUMBER}", f"{LIMITS}[{MEMORY}]: -1: {WHOLE_NUMBER}"],
    ),
    "aliases' counts that are none": (
        pods.pod({GPU_MEM: "8Pi", GPU_COUNT: "one"}),
        [f"{LIMITS}[{GPU_MEM}]: 8Pi: {WHOLE_NUMBER}", f"{LIMITS}[{GPU_COUNT}]: one: {WHOLE_NUMBER}"],
    ),
    "more whole cards than a count can say": (
        pods.pod({GPU_COUNT: "10M"}),
        [f"{LIMITS}[{GPU_COUNT}]: 10000000: must be at most 9999999"],
    ),
    "a request that is not the limit": (
        pods.pod({CORE: "30", MEMORY: "8"}, requests={CORE: "20", MEMORY: "8"}),
        [f"spec.containers[0].resources.requests[{CORE}]: 20: must equal the limit, 30; leave it out"],
    ),
    "an alias's request that is not the limit": (
        pods.pod({GPU_MEM: "8065"}, requests={GPU_MEM: "0"}),
        [f"spec.containers[0].resources.requests[{GPU_MEM}]: 0: must equal the limit, 8065; leave it out"],
    ),
    "a placement of one's own": (
        pods.pod({MEMORY: "8"}, annotations={"vcuda.dev/placement": "me"}),
        [f"metadata.annotations[vcuda.dev/placement]: me: {PLACEMENT}"],
    ),
    "a node of one's own": (
        pods.pod({MEMORY: "8"}, node="node-1"),
        [f"spec.nodeName: node-1: {NODE}"],
    ),
    "a label that should skip us": (
        pods.pod({MEMORY: "8"}, labels={"vcuda.dev/managed": "false"}),
        ["metadata.labels[vcuda.dev/managed]: false: is set by vcuda itself; leave it out"],
    ),
    "annotations that say nothing": (
        pods.pod(
            {CORE: "30", MEMORY: "8"},
            annotations={
                "vcuda.dev/cores-max": "20%",
                "vcuda.dev/priority": "9",
                "vcuda.dev/policy": "random",
            },
        ),
        [
            "metadata.annotations[vcuda.dev/cores-max]: 20%: must be a whole number from 30 to 100",
            "metadata.annotations[vcuda.dev/priority]: 9: must be one of low, normal, high",
            "metadata.annotations[vcuda.dev/policy]: random: must be one of binpack, spread",
        ],
    ),
    "an ephemeral container with a share": (
        {
            "spec": {
                "containers": [{"resources": {"limits": {MEMORY: "8"}}}],
                "ephemeralContainers": [{"resources": {"limits": {TMEMORY: "8"}}}],
            }
        },
        [
            "spec.ephemeralContainers[0].resources: must be empty, an ephemeral container has no share",
        ],
    ),
    "everything at once, in the order of the pod": (
        {
            "metadata": {"annotations": {"vcuda.dev/policy": "", "vcuda.dev/placement": ""}},
            "spec": {
                "nodeName": "n",
                "initContainers": [
                    {"resources": {"limits": {MEMORY: "8"}}},
                    {"restartPolicy": "Always", "resources": {"limits": {TCORE: "30"}}},
                ],
                "containers": [
                    {"resources": {"limits": {CORE: "x"}}},
                    {"resources": {"limits": {CORE: "30"}}},
                ],
            },
        },
        [
            f"spec.initContainers[0].resources: {INIT}",
            f"spec.initContainers[1].resources.limits[{TCORE}]: 30: {needs(TMEMORY)}",
            f"{LIMITS}[{CORE}]: x: {WHOLE_NUMBER}",
            f"spec.containers[1].resources.limits[{CORE}]: 30: {needs(MEMORY)}",
            "metadata.annotations[vcuda.dev/policy]: '': must be one of binpack, spread",
            f"metadata.annotations[vcuda.dev/placement]: '': {PLACEMENT}",
            f"spec.nodeName: n: {NODE}",
        ],
    ),
    "shapes that are no pod's": (
        {
            "metadata": [],
            "spec": {"containers": [{"resources": {"limits": {MEMORY: "8"}}}], "schedulingGates": "x"},
        },
        ["metadata: [...]: must be an object", "spec.schedulingGates: x: must be a list"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_tells_field_value_and_fix(case: str) -> None:
    pod, faults = REFUSED[case]
    assert faults_of(pod) == faults


def test_too_much_memory_in_gib_is_refused_where_it_was_written() -> None:
    rules = Rules(aliyun_unit_bytes=2**30)
    assert faults_of(pods.pod({GPU_MEM: "999999999"}), rules) == [
        f"{LIMITS}[{GPU_MEM}]: 999999999: must be at most 249999999"
    ]


def test_answer_patches_and_warns() -> None:
    pod = pods.pod({GPU_MEM: "8065"})
    done = answer(pods.review(pod), rules=RULES, now_ns=NOW_NS)
    response = json.loads(done.body)["response"]
    patch = json.loads(base64.b64decode(response.pop("patch")))
    assert response == {
        "uid": "uid-1",
        "allowed": True,
        "patchType": "JSONPatch",
        "warnings": [f"{LIMITS}[{GPU_MEM}]: 8065: counts as 32 {MEMORY} of 256MiB"],
    }
    assert pods.patched(pod, patch) == admit(pod).pod
    assert (done.verdict, done.pod) == (Verdict.PATCHED, "default/pod")


def test_answer_allows_what_does_not_ask_without_a_patch() -> None:
    done = answer(pods.review(pods.pod({"cpu": "1"})), rules=RULES, now_ns=NOW_NS)
    assert json.loads(done.body) == {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": "uid-1", "allowed": True},
    }
    assert done.verdict is Verdict.UNTOUCHED


def test_answer_refuses_with_all_faults_in_one_line() -> None:
    done = answer(pods.review(pods.pod({CORE: "30"}, {CORE: "150"})), rules=RULES, now_ns=NOW_NS)
    message = (
        f"{LIMITS}[{CORE}]: 30: {needs(MEMORY)}; "
        f"spec.containers[1].resources.limits[{CORE}]: 150: {BETWEEN_CARDS}"
    )
    assert json.loads(done.body)["response"] == {
        "uid": "uid-1",
        "allowed": False,
        "status": {"code": 422, "reason": "Invalid", "message": message},
    }
    assert (done.verdict, done.message) == (Verdict.REFUSED, message)


def test_thousands_of_faults_are_counted_in_the_end() -> None:
    done = answer(pods.review(pods.pod(*[{CORE: "30"}] * 1000)), rules=RULES, now_ns=NOW_NS)
    assert done.message.count("needs memory") == MOST_FAULTS
    assert done.message.endswith(f"; and {1000 - MOST_FAULTS} more")


def test_dry_run_is_answered_alike() -> None:
    body = json.loads(pods.review(pods.pod({MEMORY: "8"})))
    wet = answer(json.dumps(body).encode(), rules=RULES, now_ns=NOW_NS)
    body["request"]["dryRun"] = True
    assert answer(json.dumps(body).encode(), rules=RULES, now_ns=NOW_NS) == wet


INVALID: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "body: Invalid JSON: EOF while parsing an object at line 1 column 1"),
    "nothing": (b"", "body: Invalid JSON: EOF while parsing a value at line 1 column 0"),
    "a list": ([], "body: Input should be an object"),
    "an empty object": ({}, "apiVersion: Field required"),
    "an older version": ({"apiVersion": "admission.k8s.io/v1beta1"}, "apiVersion: Input should be"),
    "another kind": ({"kind": "ConversionReview"}, "kind: Input should be 'AdmissionReview'"),
    "no request": ({"request": None}, "request: Input should be an object"),
    "no uid": ({"request": {"uid": ""}}, "request.uid: String should have at least 1 character"),
    "a pod that is none": ({"request": {"object": []}}, "request.object: Input should be an object"),
    "no pod": ({"request": {"object": None}}, "request.object: must be the pod that is being created"),
    "a deployment": (
        {"request": {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}}},
        "request.kind: apps/v1 Deployment: must be v1 Pod; see the rules of the webhook configuration",
    ),
    "a binding": (
        {"request": {"subResource": "binding"}},
        "request.kind: v1 Pod (binding): must be v1 Pod; see the rules of the webhook configuration",
    ),
    "a deletion": (
        {"request": {"operation": "DELETE"}},
        "request.operation: DELETE: must be CREATE; see the webhook configuration",
    ),
    "too deep": (b"[" * 100_000, "body: Invalid JSON: recursion limit exceeded"),
}


@pytest.mark.parametrize("case", INVALID)
def test_what_is_no_review_is_refused_with_a_reason(case: str) -> None:
    given, message = INVALID[case]
    if isinstance(given, bytes):
        body = given
    elif not given:
        body = json.dumps(given).encode()
    else:
        review = json.loads(pods.review(pods.pod({MEMORY: "8"})))
        asked = given.get("request", {})
        request = asked if asked is None else {**review["request"], **asked}
        body = json.dumps({**review, **given, "request": request}).encode()
    with pytest.raises(ReviewError) as error:
        answer(body, rules=RULES, now_ns=NOW_NS)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "operations"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": True}, [{"op": "replace", "path": "/a", "value": True}]),
        ({"a": 1}, {"b": 1}, [{"op": "remove", "path": "/a"}, {"op": "add", "path": "/b", "value": 1}]),
        ({"a": [1]}, {"a": [1, 2]}, [{"op": "add", "path": "/a/-", "value": 2}]),
        ({"a": [1, 2]}, {"a": [1]}, [{"op": "replace", "path": "/a", "value": [1]}]),
        ({"x/y~z": 1}, {"x/y~z": 2}, [{"op": "replace", "path": "/x~1y~0z", "value": 2}]),
        ({"a": None}, {"a": {}}, [{"op": "replace", "path": "/a", "value": {}}]),
        (1, 2, [{"op": "replace", "path": "", "value": 2}]),
    ],
    ids=str,
)
def test_patch_is_the_difference(before: Any, after: Any, operations: list[Any]) -> None:
    assert list(difference(before, after)) == operations
    assert pods.patched(before, operations) == after
