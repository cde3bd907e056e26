"""Sizes, shares and durations as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcuda.errors import VcudaError
from vcuda.units import MAX_BYTES, PPM, format_cores, format_duration, format_size, parse_cores, parse_size

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("1048576", 2**20),
        ("4GiB", 4 * GIB),
        ("4GB", 4 * GIB),
        ("4G", 4 * GIB),
        ("4g", 4 * GIB),
        ("4gib", 4 * GIB),
        (" 4 GiB ", 4 * GIB),
        ("1.5g", 3 * GIB // 2),
        ("0.5KiB", 512),
        ("512MiB", 512 * 2**20),
        ("2T", 2**41),
        ("100b", 100),
        (str(MAX_BYTES), MAX_BYTES),
    ],
)
def test_size_is_read_as_binary_whatever_its_suffix(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a size; write it as 4GiB, 512MiB or 1.5g"),
        ("four", "'four' is not a size; write it as 4GiB, 512MiB or 1.5g"),
        ("-1", "'-1' is not a size; write it as 4GiB, 512MiB or 1.5g"),
        ("1e9", "'1e9' is not a size; write it as 4GiB, 512MiB or 1.5g"),
        ("4 G B", "'4 G B' is not a size; write it as 4GiB, 512MiB or 1.5g"),
        ("1PiB", "'1PiB' is not a size; write it as 4GiB, 512MiB or 1.5g"),
        ("0", "'0' is out of range; the least is 1 byte, the most 16TiB"),
        ("0GiB", "'0GiB' is out of range; the least is 1 byte, the most 16TiB"),
        ("16TiB", "'16TiB' is out of range; the least is 1 byte, the most 16TiB"),
        (
            "99999999999999999999",
            "'99999999999999999999' is out of range; the least is 1 byte, the most 16TiB",
        ),
        ("0.3", "'0.3' is not a whole number of bytes"),
    ],
)
def test_what_is_no_size_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(VcudaError) as error:
        parse_size(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (304 * 2**20, "304MiB"),
        (27 * GIB // 2, "13.5GiB"),
        (4 * GIB - 1, "3.9GiB"),
        (MAX_BYTES + 1, "16TiB"),
        (-GIB, "-1GiB"),
    ],
)
def test_size_is_written_with_one_decimal_at_most(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(1, MAX_BYTES))
def test_size_that_is_shown_as_free_can_be_asked_for(size_bytes: int) -> None:
    text = format_size(size_bytes)
    try:
        asked = parse_size(text)
    except VcudaError as error:
        assert "whole number" in str(error)  # 1.1KiB is none
        return
    assert size_bytes * 10 // 11 <= asked <= size_bytes


@pytest.mark.parametrize(
    ("text", "ppm"), [("30", 300_000), ("30%", 300_000), ("12.5", 125_000), ("100", PPM), ("0.0001", 1)]
)
def test_cores_are_a_percentage(text: str, ppm: int) -> None:
    assert parse_cores(text) == ppm


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0",
        "-5",
        "1e1",
        "1e999999999",
        "100.1",
        "200",
        "0.00001",
        "inf",
        "nan",
        "1/0",
        "30%%",
        "9" * 400,
    ],
)
def test_what_is_no_percentage_of_a_card_is_refused(text: str) -> None:
    with pytest.raises(VcudaError):
        parse_cores(text)


@given(st.integers(1, PPM))
def test_cores_are_read_as_they_were_written(ppm: int) -> None:
    assert parse_cores(format_cores(ppm)) == ppm


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0us"),
        (350_999, "350us"),
        (12_000_000, "12ms"),
        (4_200_000_000, "4.2s"),
        (59_990_000_000, "59.9s"),
        (60_000_000_000, "1m00s"),
        (185_000_000_000, "3m05s"),
        (7_800_000_000_000, "2h10m"),
    ],
)
def test_duration_is_written_in_the_unit_that_leaves_few_digits(duration_ns: int, text: str) -> None:
    assert format_duration(duration_ns) == text
