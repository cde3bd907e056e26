"""The ledger's and its neighbours' tests under sanitizers, and their parsers under a fuzzer."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.native.ledger_support import ADDRESS, FUZZER, NATIVE, THREAD, build, keep

UNITS = (
    "test_ledger",
    "test_ledger_points",
    "test_grant",
    "test_record",
    "test_pages",
    "test_ledger_threads",
)
THREADED = ("test_ledger_threads", "test_record", "test_pages")


@pytest.mark.parametrize("program", UNITS)
def test_no_address_or_undefined_behaviour_is_found(program: str, tmp_path: Path) -> None:
    keep(build(NATIVE / "tests" / f"{program}.c", ADDRESS), tmp_path=tmp_path, variant=ADDRESS)


@pytest.mark.parametrize("program", ["test_ledger_race", "test_ledger_crash"])
def test_nor_in_a_race_or_a_crash(program: str, tmp_path: Path) -> None:
    arguments = {"test_ledger_race": ("2", "16"), "test_ledger_crash": ("60",)}[program]
    keep(build(NATIVE / "tests" / f"{program}.c", ADDRESS), *arguments, tmp_path=tmp_path, variant=ADDRESS)


@pytest.mark.parametrize("program", THREADED)
def test_no_data_race_is_found(program: str, tmp_path: Path) -> None:
    keep(build(NATIVE / "tests" / f"{program}.c", THREAD), tmp_path=tmp_path, variant=THREAD)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("parser", ["fuzz_grant", "fuzz_ledger"])
def test_no_input_breaks_a_parser(parser: str, tmp_path: Path, soak: bool) -> None:
    """From an empty corpus: 200,000 inputs, 10 million in the long run."""
    runs = 10_000_000 if soak else 200_000
    fuzzer = build(NATIVE / "fuzz" / f"{parser}.c", FUZZER)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    done = keep_fuzzing(fuzzer, corpus, runs)
    assert f"Done {runs} runs" in done
    found = re.findall(r"cov: (\d+)", done)
    assert int(found[-1]) > 40


def keep_fuzzing(fuzzer: Path, corpus: Path, runs: int) -> str:
    """Run a fuzzer for so many inputs; what it says. Any finding fails the test, and shows the input."""
    done = subprocess.run(
        [str(fuzzer), f"-runs={runs}", "-max_len=12000", f"-artifact_prefix={corpus}/", str(corpus)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr
