"""A mapping as frozen values: how one row of a file becomes accounts and a ledger transaction.

Written by people as YAML (`mapping_file.py` reads it), applied to rows by `plan.py`.
"""

import re
from collections.abc import Mapping as ReadOnlyMapping
from dataclasses import dataclass
from datetime import tzinfo

from cell.ledger.model import Direction, Status
from control_plane.load.amounts import AmountFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column that the mapping needs, and where it says so."""

    name: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Text with `{column}` placeholders."""

    parts: tuple[tuple[str, str | None], ...]
    """Literal text, then the column that follows it (None after the last)."""

    def fill(self, row: ReadOnlyMapping[str, str]) -> str:
        return "".join(
            text if column is None else text + row[column] for text, column in self.parts
        )

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for _, column in self.parts if column is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    encoding: str = "utf-8"
    delimiter: str = ","
    quote: str = '"'
    trims: bool = True
    """Blanks around a value do not count."""
    columns: tuple[str, ...] = ()
    """Names of the columns; empty: the first line of the file has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSpec:
    name: str
    description: str | None
    metadata: ReadOnlyMapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSpec:
    """One kind of account; each distinct external id it renders is one ledger account."""

    external_id: Template
    name: Template
    description: Template | None
    normal_balance: Direction
    currency: str
    currency_exponent: int
    metadata: ReadOnlyMapping[str, Template]


@dataclass(frozen=True, slots=True, kw_only=True)
class DateFormat:
    column: str
    format: str
    """As strptime reads it."""
    timezone: tzinfo
    """Of dates that carry no offset themselves."""
    fixed_width: bool
    """Numbers follow each other without a separator: the text must have exactly the width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionSpec:
    external_id: Template
    effective_at: DateFormat
    amount_column: str
    amount: AmountFormat
    description: Template | None
    status: Status
    metadata: ReadOnlyMapping[str, Template]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What one column must hold (or, negated, must not)."""

    column: str
    texts: frozenset[str] | None
    pattern: re.Pattern[str] | None
    negated: bool

    def holds(self, row: ReadOnlyMapping[str, str]) -> bool:
        value = row[self.column]
        if self.pattern is not None:
            found = self.pattern.fullmatch(value) is not None
        else:
            assert self.texts is not None
            found = value in self.texts
        return found is not self.negated


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySpec:
    account: str
    """Key of `Mapping.accounts`."""
    direction: Direction
    amount_column: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    name: str
    conditions: tuple[Condition, ...]
    """All must hold; none: every row."""
    description: Template | None
    """None: the transactions' own."""
    entries: tuple[EntrySpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    file: str
    """Path of the mapping file, for messages."""
    digest: str
    """Hex SHA-256 of the mapping file."""
    dataset: str
    """Names the data for good: ledger and idempotency keys are derived from it."""
    format: FileFormat
    ledger: LedgerSpec
    accounts: ReadOnlyMapping[str, AccountSpec]
    transaction: TransactionSpec
    rules: tuple[Rule, ...]
    """The first one whose conditions hold decides."""
    columns: tuple[Column, ...]
    """Every mention of a column, in the order of the file."""
