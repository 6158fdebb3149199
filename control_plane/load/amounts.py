"""Decimal text to the smallest unit of a currency, exactly: strings and integers, never a float."""

import re
from dataclasses import dataclass

from control_plane.load.errors import RowRejected

AMOUNT_DIGITS_MAX = 36
"""The API's limit for one entry."""

_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AmountFormat:
    """How amounts are written in the file."""

    decimal_mark: str = "."
    grouping_mark: str = ""
    """Between groups of three digits; empty: there is none."""
    negative_allowed: bool = False
    """True: the sign is left out of the amount, because the rules already decide the direction."""


def smallest_units(text: str, exponent: int, written: AmountFormat) -> int:
    """The amount in the currency's smallest unit, non-negative.

    Raises RowRejected for anything that is not a plain number, has more decimals than the currency,
    more digits than the API takes, or a minus sign that is not allowed.
    """
    unsigned = _without_sign(text, written)
    whole, mark, decimals = unsigned.partition(written.decimal_mark)
    digits = _without_groups(whole, text, written.grouping_mark)
    if not _DIGITS.fullmatch(digits) or (mark and not _DIGITS.fullmatch(decimals)):
        raise RowRejected(f"amount {text!r} is not a number")
    if len(decimals) > exponent:
        raise RowRejected(f"amount {text!r} has {len(decimals)} decimals, the currency {exponent}")
    units = (digits + decimals.ljust(exponent, "0")).lstrip("0")
    if len(units) > AMOUNT_DIGITS_MAX:
        raise RowRejected(f"amount {text!r} has more than {AMOUNT_DIGITS_MAX} digits")
    return int(units or "0")


def _without_sign(text: str, written: AmountFormat) -> str:
    if text.startswith("+"):
        return text[1:]
    if text.startswith("-"):
        if not written.negative_allowed:
            raise RowRejected(f"amount {text!r} is negative")
        return text[1:]
    return text


def _without_groups(whole: str, text: str, grouping_mark: str) -> str:
    if not grouping_mark or grouping_mark not in whole:
        return whole
    first, *others = whole.split(grouping_mark)
    # "1,5" with a grouping comma is more likely a decimal comma than fifteen.
    if not 1 <= len(first) <= 3 or any(len(group) != 3 for group in others):
        raise RowRejected(f"amount {text!r} is not grouped in threes by {grouping_mark!r}")
    return first + "".join(others)
