"""What users do, end to end: the claims of demo/scenarios.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from demo import scenarios
from demo.scenarios import Rules, Scenario
from tests.cluster.installation import Installation, Site
from tests.cluster.machine import Cluster

RULES = Rules(seconds=16, above=3.0, below=5.0)
"""A host that is busy makes programs late; and of a run so short, more is in the queue at the end."""


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> Iterator[Installation]:
    """All of vcuda, on a node with two cards; and the image with the programs."""
    scenarios.make_image(cluster)
    made = Installation(cluster, cards=scenarios.CARDS)
    yield made
    made.close()


@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda scenario: scenario.__name__)
def test_all_claims_are_kept(installation: Installation, scenario: Callable[[Site, Rules], Scenario]) -> None:
    found = scenario(installation, RULES)
    assert found.claims
    assert [each for each in found.claims if not each.kept] == []
