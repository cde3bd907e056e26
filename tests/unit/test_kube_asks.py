"""What a pod asks, as its resources and annotations say it, and what is wrong with it."""

from typing import Any

import pytest

from vcuda.kube.asks import Ask, AskError, PodAsk, asked_of, shown
from vcuda.kube.names import Names

NAMES = Names()
CORE = "vcuda.dev/vcuda-core"
MEMORY = "vcuda.dev/vcuda-memory"
CEILING = "vcuda.dev/cores-max"
NINES = "9" * 5000


def pod(*limits: dict[str, Any], init: tuple[dict[str, Any], ...] = (), **annotations: str) -> dict[str, Any]:
    def containers(names: str, each: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
        return [
            {"name": f"{names}{index}", "resources": {"limits": limit}} for index, limit in enumerate(each)
        ]

    return {
        "metadata": {
            "annotations": {f"vcuda.dev/{key.replace('_', '-')}": text for key, text in annotations.items()}
        },
        "spec": {"initContainers": containers("init", init), "containers": containers("main", limits)},
    }


def test_init_containers_come_first_and_those_that_do_not_ask_are_left_out() -> None:
    asked = asked_of(
        pod({CORE: "40", MEMORY: "24"}, {"cpu": "1"}, {CORE: "0", MEMORY: "0"}, init=({MEMORY: "1k"},)), NAMES
    )
    assert asked == PodAsk(
        containers=(
            Ask(container="init0", cores=0, memory_units=1000),
            Ask(container="main0", cores=40, memory_units=24),
        )
    )


@pytest.mark.parametrize(("cores", "whole"), [(0, 0), (30, 0), (100, 1), (800, 8)])
def test_multiples_of_a_hundred_cores_are_whole_cards(cores: int, whole: int) -> None:
    assert Ask(container="main", cores=cores, memory_units=1).whole == whole


def test_whole_cards_need_no_memory() -> None:
    asked = asked_of(pod({CORE: "1k"}), NAMES)
    assert [(ask.cores, ask.memory_units, ask.whole) for ask in asked.containers] == [(1000, 0, 10)]


def test_annotations_are_read() -> None:
    asked = asked_of(pod({CORE: "30", MEMORY: "8"}, cores_max="60", priority="low", policy="spread"), NAMES)
    assert (asked.cores_max, asked.priority, asked.policy) == (60, -1, "spread")


def test_another_domain_has_its_own_names() -> None:
    asked = asked_of(pod({"gpu.example.com/vcuda-memory": "4", CORE: "30"}), Names(domain="gpu.example.com"))
    assert asked.containers == (Ask(container="main0", cores=0, memory_units=4),)


WHERE = "spec.containers[0].resources.limits"


@pytest.mark.parametrize(
    ("limits", "annotations", "faults"),
    [
        (
            {CORE: "30"},
            {},
            [f"{WHERE}[{CORE}]: 30: a share of a card needs memory: add {MEMORY} beside it"],
        ),
        (
            {CORE: "150", MEMORY: "8"},
            {},
            [f"{WHERE}[{CORE}]: 150: above 100 only whole cards can be asked, 100 or 200"],
        ),
        (
            {CORE: "500m", MEMORY: "-1"},
            {},
            [
                f"{WHERE}[{CORE}]: 500m: must be a whole number from 0 to 999999999",
                f"{WHERE}[{MEMORY}]: -1: must be a whole number from 0 to 999999999",
            ],
        ),
        (
            {CORE: "30", MEMORY: "8"},
            {"cores_max": "20", "priority": "urgent", "policy": ""},
            [
                "metadata.annotations[vcuda.dev/cores-max]: 20: must be a whole number from 30 to 100",
                "metadata.annotations[vcuda.dev/priority]: urgent: must be one of low, normal, high",
                "metadata.annotations[vcuda.dev/policy]: '': must be one of binpack, spread",
            ],
        ),
        (
            {MEMORY: "8"},
            {"cores_max": "0"},
            ["metadata.annotations[vcuda.dev/cores-max]: 0: must be a whole number from 1 to 100"],
        ),
        (
            {CORE: "100"},
            {"cores_max": NINES},
            [
                f"metadata.annotations[{CEILING}]: {NINES[:61]}...: must be a whole number from 1 to 100",
            ],
        ),
    ],
    ids=[
        "cores without memory",
        "cores between whole cards",
        "both counts are none",
        "all annotations at once",
        "a ceiling of nothing",
        "a ceiling of thousands of digits",
    ],
)
def test_all_faults_are_told_at_once(
    limits: dict[str, Any], annotations: dict[str, str], faults: list[str]
) -> None:
    with pytest.raises(AskError) as error:
        asked_of(pod(limits, **annotations), NAMES)
    assert list(error.value.faults) == faults
    assert str(error.value) == "; ".join(faults)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"spec": None, "metadata": None},
        {"spec": [], "metadata": "x"},
        {"spec": {"containers": {}}},
        {"spec": {"containers": [None, 1, "x", {"resources": []}, {"resources": {"limits": 7}}]}},
    ],
    ids=repr,
)
def test_what_is_no_pod_asks_nothing(broken: dict[str, Any]) -> None:
    assert asked_of(broken, NAMES) == PodAsk(containers=())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("30", "30"),
        ("", "''"),
        ("a\nb", "'a\\nb'"),
        (None, "None"),
        ("x" * 100, "x" * 61 + "..."),
        ({}, "{...}"),
        ([1], "[...]"),
    ],
)
def test_value_is_shown_in_one_short_line(value: object, text: str) -> None:
    assert shown(value) == text


def test_number_of_thousands_of_digits_is_shown_all_the_same() -> None:
    assert shown(1 << 20_000) == "0x1" + "0" * 58 + "..."


def test_memory_that_was_asked_for_less_than_its_units_is_what_was_asked() -> None:
    asked = asked_of(pod({MEMORY: "32"}, {MEMORY: "8"}, memory_bytes='{"main0": 8456765440}'), NAMES)
    first, second = asked.containers
    assert (first.bytes_of(2**28), second.bytes_of(2**28)) == (8065 * 2**20, 2**31)
    assert first.bytes_of(2**20) == 32 * 2**20  # it makes no share larger


@pytest.mark.parametrize(
    "value", ["", "[]", "8", '{"main0": "8"}', '{"main0": 0}', '{"main0": true}', "{" * 5000]
)
def test_memory_in_bytes_that_cannot_be_is_refused(value: str) -> None:
    with pytest.raises(AskError, match="an object of JSON, container to bytes"):
        asked_of(pod({MEMORY: "32"}, memory_bytes=value), NAMES)
