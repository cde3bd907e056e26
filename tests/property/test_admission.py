"""Any JSON at all is answered, and what is made of a pod holds whatever the pod."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from typing import Any

import aiohttp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from admission.aliases import Rules
from admission.metrics import WebhookMetrics
from admission.mutate import admitted
from admission.patch import difference
from admission.review import ReviewError, answer
from admission.server import MutateServer
from admission.tls import ServingContext
from tests import admission_support as pods
from vcuda.kube.asks import AskError, asked_of
from vcuda.kube.names import ALIASES, Names
from vcuda.kube.quantities import count_of

NAMES = Names()
RULES = Rules()
RESOURCES = (NAMES.core, NAMES.memory, *ALIASES, "cpu")
NOW_NS = 1_700_000_000_000_000_000

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(
    [
        *RESOURCES,
        *(NAMES.placement, NAMES.arrival, NAMES.managed, NAMES.cores_max, NAMES.priority, NAMES.policy),
        *("metadata", "labels", "annotations", "spec", "containers", "initContainers", "ephemeralContainers"),
        *("resources", "limits", "requests", "schedulingGates", "nodeName", "name"),
        *("apiVersion", "kind", "request", "uid", "object", "operation", "group", "version"),
    ]
) | st.text(max_size=4)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
QUANTITIES = (
    st.sampled_from(
        ["0", "1", "30", "100", "150", "200", "8065", "1k", "1Ki", "2e2", "500m", "-1", "", "1e99"]
    )
    | st.integers(-1, 10**10).map(str)
    | st.from_regex(r"[+-]?[0-9.]{1,4}[a-zA-Z]{0,2}", fullmatch=True)
)
LISTED = st.dictionaries(st.sampled_from(RESOURCES), QUANTITIES, max_size=3)
SENSIBLE = st.sampled_from(
    [
        {NAMES.core: "30", NAMES.memory: "8"},
        {NAMES.memory: "1k"},
        {NAMES.core: "200", "cpu": "1"},
        {"tencent.com/vcuda-core": "30", "tencent.com/vcuda-memory": "8"},
        {"aliyun.com/gpu-mem": "8065", "aliyun.com/gpu-count": "1"},
        {"aliyun.com/gpu-count": "2"},
        {"cpu": "1", NAMES.core: "0", "aliyun.com/gpu-mem": "0"},
    ]
)
RESOURCES_FIELDS = (
    st.fixed_dictionaries({"limits": SENSIBLE})
    | SENSIBLE.map(lambda limits: {"limits": limits, "requests": {**limits, "memory": "1Gi"}})
    | SENSIBLE.map(lambda limits: {"requests": limits})
)
CONTAINERS = st.lists(
    st.fixed_dictionaries({"name": st.just("c"), "resources": RESOURCES_FIELDS}), max_size=3
) | st.lists(
    st.fixed_dictionaries(
        {"name": st.just("c")},
        optional={
            "resources": st.fixed_dictionaries({}, optional={"limits": LISTED, "requests": LISTED}) | JSON
        },
    ),
    max_size=3,
)
ANNOTATIONS = st.dictionaries(
    st.sampled_from([NAMES.arrival, NAMES.cores_max, NAMES.priority, NAMES.policy, "note"]),
    st.sampled_from(["", "0", "50", "100", "low", "high", "binpack", "spread", "x"]),
    max_size=2,
) | st.fixed_dictionaries({}, optional={NAMES.cores_max: st.just("60"), NAMES.priority: st.just("low")})
PODS = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {},
            optional={
                "annotations": ANNOTATIONS,
                "labels": st.dictionaries(
                    st.sampled_from([NAMES.managed, "app"]), st.sampled_from(["true", "x"])
                ),
            },
        ),
        "spec": st.fixed_dictionaries(
            {"containers": CONTAINERS},
            optional={
                "initContainers": CONTAINERS,
                "schedulingGates": st.lists(
                    st.fixed_dictionaries({"name": st.sampled_from([NAMES.gate, "example.com/other"])}),
                    max_size=2,
                ),
                "nodeName": st.sampled_from(["", "", "node-1"]),
            },
        ),
    }
)
ANY_POD = PODS | JSON.filter(lambda value: isinstance(value, dict))


@given(ANY_POD)
def test_mutation_is_idempotent_and_leaves_what_it_was_given(pod: dict[str, Any]) -> None:
    before = copy.deepcopy(pod)
    once = admitted(pod, rules=RULES, now_ns=NOW_NS)
    assert json.dumps(pod) == json.dumps(before)
    if once.pod is None:
        return
    kept = copy.deepcopy(once.pod)
    twice = admitted(once.pod, rules=RULES, now_ns=NOW_NS)
    assert (twice.pod, twice.faults, twice.warnings, twice.aliases) == (kept, (), (), ())


@given(PODS)
def test_admitted_pod_is_one_that_the_controller_reads(pod: dict[str, Any]) -> None:
    done = admitted(pod, rules=RULES, now_ns=NOW_NS)
    if done.pod is None:
        return
    assert asked_of(done.pod, NAMES).containers
    assert done.pod["metadata"]["labels"][NAMES.managed] == "true"
    assert done.pod["metadata"]["annotations"][NAMES.arrival] == str(NOW_NS)
    assert done.pod["spec"]["schedulingGates"].count({"name": NAMES.gate}) >= 1
    for field in ("initContainers", "containers"):
        for container in done.pod["spec"].get(field, ()):
            resources = container.get("resources") or {}
            if not isinstance(resources, dict):
                continue
            limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
            if not isinstance(limits, dict) or not isinstance(requests, dict):
                continue
            assert not {*limits, *requests} & set(ALIASES)
            for name in (NAMES.core, NAMES.memory):
                assert count_of(limits.get(name, "0")) == count_of(requests.get(name, "0"))


@given(PODS)
def test_pod_in_vcuda_s_own_resources_is_refused_for_what_the_controller_refuses_alone(
    pod: dict[str, Any],
) -> None:
    """Beside that, only for what vcuda writes itself, and requests that differ."""
    texts = json.dumps(pod)
    if any(name in texts for name in ALIASES) or "requests" in texts or "nodeName" in texts:
        return
    done = admitted(pod, rules=RULES, now_ns=NOW_NS)
    try:
        asked = asked_of(pod, NAMES)
    except AskError as error:
        assert not done.faults or set(error.faults) <= set(done.faults)
        return
    ending = [each for each in pod["spec"].get("initContainers", ()) if each.get("restartPolicy") != "Always"]
    if asked_of({"metadata": {}, "spec": {"containers": ending}}, NAMES).containers:
        assert any(fault.startswith("spec.initContainers[") for fault in done.faults)
    elif pod["metadata"].get("labels", {}).get(NAMES.managed, "true") == "true":
        assert done.faults == ()
        assert (done.pod is not None) == bool(asked.containers)


@given(JSON, JSON)
def test_patch_makes_the_one_of_the_other(before: Any, after: Any) -> None:
    before, after = json.loads(json.dumps(before)), json.loads(json.dumps(after))
    patch = list(difference(before, after))
    assert json.dumps(pods.patched(before, patch), sort_keys=True) == json.dumps(after, sort_keys=True)
    assert list(difference(before, before)) == [] or "NaN" in json.dumps(before)


@given(ANY_POD)
def test_answer_is_a_review_whose_patch_fits(pod: dict[str, Any]) -> None:
    body = pods.review(pod)
    try:
        done = answer(body, rules=RULES, now_ns=NOW_NS)
    except ReviewError as error:  # NaN, say, or half of a surrogate pair: no JSON
        assert "\n" not in str(error)
        return
    response = json.loads(done.body)["response"]
    assert response["uid"] == "uid-1"
    if response["allowed"] and "patch" in response:
        patch = json.loads(base64.b64decode(response["patch"]))
        assert (
            pods.patched(json.loads(body)["request"]["object"], patch)
            == admitted(json.loads(body)["request"]["object"], rules=RULES, now_ns=NOW_NS).pod
        )
    elif not response["allowed"]:
        assert response["status"]["message"].isprintable()


BODIES = (
    st.binary(max_size=64)
    | JSON.map(lambda value: json.dumps(value).encode())
    | ANY_POD.map(pods.review)
    | st.dictionaries(KEYS, JSON, max_size=4).map(lambda request: pods.review({}, **request))
)


def test_any_body_gets_200_or_4xx() -> None:
    """On a socket, all bodies over one connection, which nothing of this closes."""

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(BODIES)
    def asked(body: bytes) -> None:
        status, text = loop.run_until_complete(post(body))
        assert status == 200 or 400 <= status < 500, text
        if status == 200:
            assert isinstance(json.loads(text)["response"]["allowed"], bool)
        else:
            assert text.startswith("vcuda-admission: ")

    async def post(body: bytes) -> tuple[int, str]:
        async with session.post("/mutate", data=body, headers={"Content-Type": "application/json"}) as got:
            return got.status, await got.text()

    async def start() -> tuple[MutateServer, aiohttp.ClientSession]:
        serving = ServingContext()
        server = MutateServer(
            rules=RULES, serving=None, metrics=WebhookMetrics(serving), body_limit=2**20, read_timeout_s=60
        )
        port = await server.start("127.0.0.1", 0)
        return server, aiohttp.ClientSession(f"http://127.0.0.1:{port}")

    loop = asyncio.new_event_loop()
    try:
        server, session = loop.run_until_complete(start())
        try:
            asked()
        finally:
            loop.run_until_complete(session.close())
            loop.run_until_complete(server.stop())
    finally:
        loop.close()
