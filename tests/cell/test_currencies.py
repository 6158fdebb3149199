"""Method: a table of codes and exponents, in the order in which the rule looks at them."""

import pytest

from cell.errors import Unprocessable
from cell.ledger.currencies import EXPONENTS, resolve_exponent


def test_table() -> None:
    assert {len(code) for code in EXPONENTS} == {3}
    assert all(code.isupper() and code.isascii() for code in EXPONENTS)
    assert len(EXPONENTS) > 170


@pytest.mark.parametrize(
    ("code", "given", "exponent"),
    [
        ("USD", None, 2),
        ("USD", 2, 2),
        ("EUR", None, 2),
        ("JPY", None, 0),
        ("KWD", None, 3),
        ("CLF", None, 4),
        ("ETH", 18, 18),
        ("PTS", 0, 0),
        ("X", 30, 30),
        ("usd", 2, 2),
        ("XAU", 4, 4),
        ("A" * 32, 1, 1),
    ],
)
def test_accepted(code: str, given: int | None, exponent: int) -> None:
    assert resolve_exponent(code, given) == exponent


@pytest.mark.parametrize(
    ("code", "given", "parameter"),
    [
        ("", 2, "currency"),
        ("A" * 33, 2, "currency"),
        ("US D", 2, "currency"),
        ("€", 2, "currency"),
        ("U\n", 2, "currency"),
        ("USD", 3, "currency_exponent"),
        ("JPY", 2, "currency_exponent"),
        ("PTS", None, "currency_exponent"),
        ("PTS", -1, "currency_exponent"),
        ("PTS", 31, "currency_exponent"),
        ("PTS", 10**40, "currency_exponent"),
    ],
)
def test_refused(code: str, given: int | None, parameter: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        resolve_exponent(code, given)
    assert refused.value.parameter == parameter
