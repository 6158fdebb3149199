"""Method: examples by hand, and properties against `decimal` with unlimited precision."""

from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.load.amounts import AmountFormat, smallest_units
from control_plane.load.errors import RowRejected

PLAIN = AmountFormat()
CZECH = AmountFormat(decimal_mark=",", grouping_mark=" ")
SIGNED = AmountFormat(negative_allowed=True)


@pytest.mark.parametrize(
    ("text", "exponent", "written", "units"),
    [
        ("700.00", 2, PLAIN, 70000),
        ("700", 2, PLAIN, 70000),
        ("700.5", 2, PLAIN, 70050),
        ("0.01", 2, PLAIN, 1),
        ("0", 2, PLAIN, 0),
        ("000.00", 2, PLAIN, 0),
        ("5", 0, PLAIN, 5),
        ("+5.1", 1, PLAIN, 51),
        ("0.1", 18, PLAIN, 10**17),
        ("9" * 34 + ".99", 2, PLAIN, 10**36 - 1),
        # A float would make 40439.99999… of it, or lose its last digits.
        ("404.40", 2, PLAIN, 40440),
        ("9007199254740993.01", 2, PLAIN, 900719925474099301),
        ("1 234 567,89", 2, CZECH, 123456789),
        ("1234567,89", 2, CZECH, 123456789),
        ("-12.30", 2, SIGNED, 1230),
    ],
)
def test_exact(text: str, exponent: int, written: AmountFormat, units: int) -> None:
    assert smallest_units(text, exponent, written) == units


@pytest.mark.parametrize(
    ("text", "exponent", "written", "reason"),
    [
        ("1.234", 2, PLAIN, "3 decimals, the currency 2"),
        ("1.230", 2, PLAIN, "3 decimals, the currency 2"),
        ("1.0", 0, PLAIN, "1 decimals, the currency 0"),
        ("-1", 2, PLAIN, "negative"),
        ("", 2, PLAIN, "not a number"),
        (".", 2, PLAIN, "not a number"),
        ("1.", 2, PLAIN, "not a number"),
        (".5", 2, PLAIN, "not a number"),
        ("1e3", 2, PLAIN, "not a number"),
        ("1_000", 2, PLAIN, "not a number"),
        ("0x10", 2, PLAIN, "not a number"),
        ("NaN", 2, PLAIN, "not a number"),
        ("Infinity", 2, PLAIN, "not a number"),
        ("--1", 2, SIGNED, "not a number"),
        ("1 000", 2, PLAIN, "not a number"),
        ("1,000.00", 2, PLAIN, "not a number"),
        # Digits of other scripts are digits to `int`, but nobody's amounts.
        ("١٢", 2, PLAIN, "not a number"),
        ("1²", 2, PLAIN, "not a number"),
        ("12 34,00", 2, CZECH, "grouped in threes"),
        ("1 5", 2, CZECH, "grouped in threes"),
        (" 1", 2, CZECH, "grouped in threes"),
        ("9" * 35 + ".99", 2, PLAIN, "more than 36 digits"),
    ],
)
def test_rejected(text: str, exponent: int, written: AmountFormat, reason: str) -> None:
    with pytest.raises(RowRejected, match=reason):
        smallest_units(text, exponent, written)


@given(units=st.integers(0, 10**36 - 1), exponent=st.integers(0, 30))
def test_every_amount_survives_being_written(units: int, exponent: int) -> None:
    text = format(Decimal(units).scaleb(-exponent, Context(prec=80)), "f")
    assert smallest_units(text, exponent, PLAIN) == units


@given(
    whole=st.integers(0, 10**20),
    decimals=st.text("0123456789", max_size=8),
    exponent=st.integers(0, 8),
)
def test_agrees_with_decimal(whole: int, decimals: str, exponent: int) -> None:
    text = f"{whole}.{decimals}" if decimals else str(whole)
    expected = Decimal(text).scaleb(exponent, Context(prec=80))
    if len(decimals) > exponent:
        with pytest.raises(RowRejected):
            smallest_units(text, exponent, PLAIN)
    else:
        assert smallest_units(text, exponent, PLAIN) == expected


@given(units=st.integers(0, 10**30))
def test_grouping_changes_nothing(units: int) -> None:
    grouped = AmountFormat(grouping_mark=",")
    assert smallest_units(f"{units:,}", 0, grouped) == smallest_units(str(units), 0, PLAIN)


@given(text=st.text(max_size=12), exponent=st.integers(0, 4))
def test_any_text_is_a_number_or_a_rejected_row(text: str, exponent: int) -> None:
    try:
        units = smallest_units(text, exponent, SIGNED)
    except RowRejected:
        return
    assert abs(Decimal(text).scaleb(exponent)) == units
