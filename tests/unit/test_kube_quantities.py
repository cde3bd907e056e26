"""Kubernetes writes counts in many ways; what they mean, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcuda.kube.quantities import MOST, count_of


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("0", 0),
        ("-0", 0),
        ("0Ki", 0),
        ("30", 30),
        ("+30", 30),
        ("030", 30),
        ("30.", 30),
        ("30.0", 30),
        (".5k", 500),
        ("1k", 1000),
        ("1.5k", 1500),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1e+3", 1000),
        ("5000e-3", 5),
        ("1000m", 1),
        ("2000000u", 2),
        ("3000000000n", 3),
        ("1Ki", 1024),
        ("0.5Ki", 512),
        ("8Mi", 8 * 2**20),
        ("1M", 10**6),
        ("999999999", MOST),
        (30, 30),
        (30.0, 30),
        (0, 0),
    ],
)
def test_count_is_understood_in_every_form(value: object, count: int) -> None:
    assert count_of(value) == count


@pytest.mark.parametrize(
    "value",
    [
        "",
        " 30",
        "30 ",
        "30\n",
        "-1",
        "500m",
        "1.5",
        "1u",
        "1e-1",
        "1e",
        "e3",
        "1Ee",
        "1ee",
        "1e1.5",
        "1K",
        "1ki",
        "1kk",
        "1Ei",
        "1E",
        "1000000000",
        "1e999",
        "1" * 33,
        "9" * 5000,
        "0x10",
        "1_000",
        "٣",  # digits, though not of ASCII
        "³",
        "NaN",
        "30%",
        -1,
        10**30,
        1.5,
        float("nan"),
        float("inf"),
        True,
        None,
        [],
        {},
        b"1",
    ],
    ids=repr,
)
def test_what_is_no_count_is_none(value: object) -> None:
    assert count_of(value) is None


@given(st.integers(0, MOST), st.sampled_from(["", "000m", "000000u", "e0", ".", ".00"]))
def test_count_survives_its_spelling(count: int, ending: str) -> None:
    assert count_of(f"{count}{ending}") == count


@given(st.text(max_size=40) | st.from_regex(r"[+-]?[0-9.]{1,6}[a-zA-Z]{0,3}[+-]?[0-9]{0,3}", fullmatch=True))
def test_any_text_is_a_count_or_none(text: str) -> None:
    count = count_of(text)
    assert count is None or 0 <= count <= MOST
