"""docs/reference/pods.md and admission.md against what admission says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from admission.aliases import Rules
from admission.metrics import WebhookMetrics
from admission.mutate import admitted
from admission.settings import WebhookSettings
from admission.tls import ServingContext
from tests import admission_support as pods
from tests.unit.test_admission_mutate import REFUSED
from vcuda.kube.names import ALIASES, Names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "pods.md").read_text()
ADMISSION = (ROOT / "docs" / "reference" / "admission.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
PLACEHOLDER = re.compile(r"\b(?:FIELD|VALUE|LIMIT|NAME|SIZE|N)\b")


def pattern(row: str) -> re.Pattern[str]:
    """What matches a message of the page's tables."""
    parts = PLACEHOLDER.split(row)
    return re.compile(".+".join(map(re.escape, parts)))


def told(message: str) -> list[str]:
    return [row for row in ROWS if pattern(row).fullmatch(message)]


@pytest.mark.parametrize("case", REFUSED)
def test_every_message_of_the_webhook_is_in_the_reference(case: str) -> None:
    for fault in REFUSED[case][1]:
        assert len(told(fault)) == 1, f"{fault}: {told(fault)}"


def test_no_message_is_in_the_reference_that_nobody_says() -> None:
    said = {row for _, faults in REFUSED.values() for fault in faults for row in told(fault)}
    for path in (ROOT / "manifests" / "base").glob("policy-*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            said |= {each["message"] for each in document["spec"].get("validations", ())}
    listed = {row for row in ROWS if ": " in row and not row.startswith("vcuda.dev/")}
    listed -= {row for row in listed if row.startswith("aliyun.com/gpu-")}
    assert listed == said


def test_warning_is_in_the_reference() -> None:
    (warning,) = admitted(pods.pod({"aliyun.com/gpu-mem": "8065"}), rules=Rules(), now_ns=1).warnings
    (row,) = re.findall(r"`(FIELD: N: counts as[^`]*)`", PAGE)
    assert pattern(row).fullmatch(warning)


def test_every_name_is_in_the_reference() -> None:
    names = Names()
    every = [getattr(names, name) for name in vars(Names) if isinstance(vars(Names)[name], property)]
    of_nodes = {names.cards, names.moved}
    for name in [*every, *ALIASES]:
        assert (name in PAGE) == (name not in of_nodes), name


def test_example_is_admitted() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    done = admitted(yaml.safe_load(example), rules=Rules(), now_ns=1)
    assert done.faults == ()
    assert done.pod is not None


def test_every_setting_is_in_the_reference_with_its_default() -> None:
    (table,) = re.findall(r"\| setting \|.*?\n\n", ADMISSION, re.DOTALL)
    said: dict[str, str | None] = {}
    for names, defaults in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", table, re.MULTILINE):
        listed = re.findall(r"`([^`]+)`", names)
        values = re.findall(r"`([^`]+)`", defaults) or [None] * len(listed)
        said.update(zip(listed, values, strict=True))
    assert said.keys() == WebhookSettings.model_fields.keys()
    given = {name: value for name, value in said.items() if value is not None}
    assert WebhookSettings(**given) == WebhookSettings()


def test_every_metric_is_in_the_reference() -> None:
    text = WebhookMetrics(ServingContext()).text().decode()
    families = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    made = {name for name in families if not name.endswith("_created")}
    assert set(re.findall(r"^\| `(vcuda_admission_[a-z_]+)", ADMISSION, re.MULTILINE)) == made


def test_every_manifest_of_admission_is_in_the_reference() -> None:
    for name in re.findall(r"^\| `([a-z-]+\.yaml)`", ADMISSION, re.MULTILINE):
        assert (ROOT / "manifests" / "base" / name).is_file()
