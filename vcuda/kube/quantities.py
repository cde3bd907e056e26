"""Kubernetes' quantities, where they are counts: "30", "1k", "1e3", "2Ki". Pure.

The API writes a count of 1000 as "1k", whatever its user wrote. The grammar is that of apimachinery's
`resource.Quantity`: a decimal number with a binary suffix, a decimal one, or an exponent.
"""

import re
from fractions import Fraction

MOST = 999_999_999
"""The largest count that is understood; what is beyond it no cluster has."""

_FORM = re.compile(
    r"(?P<sign>[+-]?)"
    r"(?P<digits>[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})"
    r"(?:[eE](?P<power>[+-]?[0-9]{1,2})|(?P<suffix>[a-zA-Z]{0,2}))"
)
_FACTORS = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    **{suffix: Fraction(10 ** (3 * power)) for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Fraction(2 ** (10 * power)) for power, suffix in enumerate("KMGTPE", start=1)},
}


def count_of(value: object) -> int | None:
    """The count that a quantity says: 0 to MOST; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, int):
        return value if 0 <= value <= MOST else None
    form = _FORM.fullmatch(str(value))
    if form is None:
        return None
    power, suffix = form["power"], form["suffix"]
    factor = _FACTORS.get(suffix) if power is None else Fraction(10) ** int(power)
    if factor is None:
        return None
    number = Fraction(form["digits"].rstrip(".")) * factor
    if form["sign"] == "-":
        number = -number
    return int(number) if number.denominator == 1 and 0 <= number <= MOST else None
