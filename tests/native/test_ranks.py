"""The call patterns of NCCL and of tensor-parallel serving: who makes memory pays for it, not who maps it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.test_charges import client
from tests.support import (
    GIB,
    MIB,
    card_uuids,
    context_bytes,
    driver_used,
    shim_environment,
    simulator_environment,
)
from vcuda import grant as grants
from vcuda import ledger as ledgers
from vcuda.grant import CardGrant, Grant
from vcuda.ledger import Ledger

BLOCK = 4 * MIB
STEPS = [
    ("started", 0),
    ("created by threads without a context", BLOCK),
    ("imported and mapped by the next rank", BLOCK),
    ("imports gone", BLOCK),
    ("all released", 0),
    ("opened by IPC", BLOCK),
    ("closed and freed", 0),
]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "cards", ["V100-SXM2-16GB", "V100-SXM2-16GB,V100-SXM2-16GB"], ids=["one card", "two cards"]
)
def test_ranks_share_handles_and_each_pays_for_its_own(ranks: int, cards: str, tmp_path: Path) -> None:
    machine = simulator_environment(tmp_path, cards)
    uuids = card_uuids(machine)
    context = context_bytes(machine)
    share = tmp_path / "share"
    share.mkdir()
    granted = tuple(CardGrant(uuid=uuid, memory_bytes=4 * GIB, context_bytes=context) for uuid in uuids)
    grants.write(share / "grant", Grant(name="ranks", cards=granted))
    ledgers.create(share / "ledger")
    per_card = ranks // len(uuids)
    with client(shim_environment(machine, share), "ranks", str(ranks)) as program:
        for step, each in STEPS:
            program.until(step)
            for card in range(len(uuids)):
                expected = per_card * (context + each)
                assert sum(driver_used(machine, card).values()) == expected, (step, card)
                with Ledger(share / "ledger") as ledger:
                    assert ledger.used_bytes(card) == expected, (step, card)
                    uses = [process.cards[card] for process in ledger.read(cards=len(uuids)).processes]
                own = [use.used_bytes for use in uses if use.used_bytes]
                assert own == [context + each] * per_card, (step, card)
            program.go_on()
        assert program.end() == 0
