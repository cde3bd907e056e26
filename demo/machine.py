"""The simulated machine of the demo: a private directory, one V100, and the two views of its memory.

`uses` is the ledgers' view, `driver_used` the simulated driver's own count, which knows nothing of ledgers.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vcuda import report
from vcuda.ledger import Kind
from vcuda.registry import Registry

ROOT = Path(__file__).parent.parent
STAT = ROOT / "build" / "native" / "sim" / "simgpu-stat"


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a share uses, by its ledger."""

    used_bytes: int = 0
    by_kind: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0
    launches: int = 0
    gpu_ns: int = 0


class Machine:
    """One simulated card, and nothing of it left behind."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._directory = tempfile.TemporaryDirectory(prefix="vcuda-demo-")
        self.directory = Path(self._directory.name)
        self._runtime = self.directory / "vcuda"
        self._runtime.mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "SIMGPU_DIR": str(self.directory / "simgpu"),
            "SIMGPU_CARDS": model,
            "VCUDA_RUNTIME_DIR": str(self._runtime),
        }
        (self.directory / "simgpu").mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def driver_used(self) -> dict[int, int]:
        """Bytes that each process holds of the card, as the simulated driver counts them."""
        done = subprocess.run(
            [str(STAT)], env=self.environment, capture_output=True, text=True, check=True, timeout=20
        )
        card = json.loads(done.stdout)["cards"][0]
        return {process["pid"]: process["used"] for process in card["processes"]}

    def uses(self) -> Mapping[str, Use]:
        """What each living share uses, by its name, as its ledger says."""
        return {each.share.name: _use(each) for each in report.shares(Registry(self._runtime))}


def _use(each: report.ShareReport) -> Use:
    uses = [process.cards[0] for process in each.processes]
    return Use(
        used_bytes=each.used_bytes,
        by_kind={kind.name: sum(use.bytes_by_kind[kind] for use in uses) for kind in Kind},
        refused=each.refused,
        launches=each.launches,
        gpu_ns=each.gpu_ns,
    )
