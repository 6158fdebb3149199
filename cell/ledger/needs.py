"""What a command will ask the state for, said before it is judged (pure).

Each module of rules registers, beside `apply`, a `note_needs` for each of its commands; whatever it
does not name there does not exist for the rule. A command whose needs depend on what it finds
(the parents of a category, say) names them step by step in `FURTHER_NEEDS`.

Needs are read in sets, a few SELECTs for a whole batch, and on top of a batch that is still being
written. A `Question` cannot be put on top of one: it is answered by the database as a whole (a sum
over accounts, say). A command that asks any is exclusive: it is decided alone, with nothing in
flight, so that the answer is of the very state the rule sees.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cell.ledger.model import Row, TenantId

if TYPE_CHECKING:
    from cell.ledger.rules import State

Ids = set[tuple[TenantId, str]]
"""Ids asked for, each with the tenant that asks: a look-up never crosses tenants."""

ExternalKey = tuple[TenantId, str]


@dataclass(frozen=True, slots=True)
class Relation:
    """Rows of one table that share the value of one column, less those that are discarded."""

    row: type[Row]
    by: str
    """The column, of type uuid unless `is_text`."""
    unless: str | None = "discarded_at_us"
    """Rows in which this column is not null do not count; None: all count."""
    is_text: bool = False

    def key_of(self, row: Any) -> str | None:
        """The value that the row shares with the others, or None where it does not count."""
        if self.unless is not None and getattr(row, self.unless) is not None:
            return None
        key: str | None = getattr(row, self.by)
        return key


class Question(msgspec.Struct, frozen=True, tag_field="question"):
    """Something only the database as a whole can say; see `cell/questions.py`."""


@dataclass(slots=True)
class Needs:
    """Ids, keys and questions named by commands, by kind."""

    ledgers: Ids = field(default_factory=set)
    accounts: Ids = field(default_factory=set)
    """With their balances and ledgers."""
    transactions: Ids = field(default_factory=set)
    """With their live entries and those entries' accounts."""
    entries: Ids = field(default_factory=set)
    """With their transactions."""
    account_external_ids: set[ExternalKey] = field(default_factory=set)
    transaction_external_ids: set[ExternalKey] = field(default_factory=set)
    rows: dict[type[Row], Ids] = field(default_factory=dict)
    """Rows of all other tables, by id."""
    related: dict[Relation, Ids] = field(default_factory=dict)
    """The same of relations, by key."""
    questions: set[tuple[TenantId, Question]] = field(default_factory=set)

    def row(self, kind: type[Row], tenant_id: TenantId, id: str) -> None:
        self.rows.setdefault(kind, set()).add((tenant_id, id))

    def relation(self, relation: Relation, tenant_id: TenantId, key: str) -> None:
        self.related.setdefault(relation, set()).add((tenant_id, key))


@singledispatch
def note_needs(command: object, tenant_id: TenantId, needs: Needs) -> None:
    """Add to `needs` what `command` names."""
    raise AssertionError(f"unknown needs of {type(command).__name__}")


FurtherNeeds = Callable[[Any, "State", Needs], None]
FURTHER_NEEDS: Final[dict[type[Any], FurtherNeeds]] = {}
"""By type of command: adds what it needs beyond what the state holds so far. Called until nothing
new is added; a bound on the depth is the function's own."""
