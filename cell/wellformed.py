"""What makes a value well-formed: ids, external ids, metadata, amounts, and their limits.

The one place of the API's limits. Types are msgspec annotations, checked while a body is decoded;
functions check what a type cannot say, and raise Unprocessable with the parameter's name.
"""

import re
from typing import Annotated, Final

from msgspec import UNSET, Meta, UnsetType

from cell.errors import Unprocessable

NAME_LENGTH_MAX: Final = 1000
DESCRIPTION_LENGTH_MAX: Final = 1000
EXTERNAL_ID_LENGTH_MAX: Final = 180
LEDGERABLE_ID_LENGTH_MAX: Final = 180
METADATA_KEYS_MAX: Final = 200
METADATA_KEY_LENGTH_MAX: Final = 255
METADATA_VALUE_LENGTH_MAX: Final = 1000
AMOUNT_DIGITS_MAX: Final = 36

Id = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
"""Of something of ours, as a body names it. Only described here: `parse_uuid` reads it."""
Name = Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
Description = Annotated[str, Meta(max_length=DESCRIPTION_LENGTH_MAX)]
ExternalId = Annotated[str, Meta(min_length=1, max_length=EXTERNAL_ID_LENGTH_MAX)]
LedgerableId = Annotated[str, Meta(min_length=1, max_length=LEDGERABLE_ID_LENGTH_MAX)]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=METADATA_KEY_LENGTH_MAX)]
MetadataValue = Annotated[str, Meta(max_length=METADATA_VALUE_LENGTH_MAX)]
Metadata = Annotated[dict[MetadataKey, MetadataValue | None], Meta(max_length=METADATA_KEYS_MAX)]
"""Text to text; a value that is null or empty means that the key is not there."""

INTEGER_DIGITS_MAX: Final = 60
"""Of what is compared with balances: those are sums, and may be longer than one amount."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_AMOUNT: Final = re.compile(r"[0-9]{1,36}")
_AMOUNT_END: Final = 10**AMOUNT_DIGITS_MAX
_NO_METADATA: Final[dict[str, str]] = {}


def as_uuid(text: str) -> str | None:
    """The id in lower case, or None where the text has not the form of one."""
    lowered = text.lower()
    return lowered if _UUID.fullmatch(lowered) else None


def parse_uuid(text: str, parameter: str) -> str:
    found = as_uuid(text)
    if found is None:
        raise Unprocessable(f"{parameter}: {text[:64]!r} is not a UUID", parameter)
    return found


def parse_category_ids(texts: list[str] | None, ids_max: int) -> tuple[str, ...]:
    """The categories something new is put into, each once."""
    parameter = "ledger_account_category_ids"
    ids = tuple(dict.fromkeys(parse_uuid(text, parameter) for text in texts or ()))
    if len(ids) > ids_max:
        raise Unprocessable(f"{parameter}: {len(ids)} ids, at most {ids_max}", parameter)
    return ids


def require_clean_external_id(external_id: str | UnsetType | None) -> None:
    """External ids go into paths, logs and spreadsheets: control characters are refused."""
    if isinstance(external_id, str) and _CONTROL.search(external_id):
        raise Unprocessable("external_id: holds a control character", "external_id")


def without_empty_values(metadata: dict[str, str | None]) -> dict[str, str]:
    """Metadata of a new object: keys whose value is null or empty are dropped."""
    if not metadata:
        return _NO_METADATA
    return {key: value for key, value in metadata.items() if value}


def require_both_or_neither(ledgerable_type: object, ledgerable_id: object) -> None:
    """A link to another object is its type and its id together; so it is taken away, by nulls."""
    said_of_type, said_of_id = _said(ledgerable_type), _said(ledgerable_id)
    if said_of_type != said_of_id:
        missing = "ledgerable_id" if said_of_id < said_of_type else "ledgerable_type"
        raise Unprocessable(
            "ledgerable_type and ledgerable_id are given together", missing, "parameter_missing"
        )


def _said(value: object) -> int:
    """More of a value than of null, more of null than of what is not there."""
    return 0 if value is UNSET else 1 if value is None else 2


def resolve_amount(amount: int | UnsetType, text: str | UnsetType, entries: str, n: int) -> int:
    """The amount of entry `n` of the array, from its number, its decimal text, or both agreeing."""
    if text is UNSET:
        if amount is UNSET:
            at = f"{entries}[{n}].amount"
            raise Unprocessable(f"{at} is missing", at, "parameter_missing")
        if 0 <= amount < _AMOUNT_END:
            return amount
        rule = "must be non-negative" if amount < 0 else f"has more than {AMOUNT_DIGITS_MAX} digits"
        raise Unprocessable(f"{entries}[{n}].amount {rule}", f"{entries}[{n}].amount")
    at = f"{entries}[{n}].amount_string"
    if _AMOUNT.fullmatch(text) is None:
        raise Unprocessable(f"{at}: {text[:48]!r} is not 1 to {AMOUNT_DIGITS_MAX} digits", at)
    if amount is not UNSET and amount != int(text):
        raise Unprocessable(f"{at} is {text}, amount is {amount}", at)
    return int(text)


def require_short_integer(value: int, parameter: str) -> None:
    if abs(value) >= 10**INTEGER_DIGITS_MAX:
        raise Unprocessable(f"{parameter} has more than {INTEGER_DIGITS_MAX} digits", parameter)
