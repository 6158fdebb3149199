"""One row of the file to the accounts and the ledger transaction it asks for (pure)."""

from collections.abc import Mapping as ReadOnlyMapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cell.ledger.model import Direction, Status
from control_plane.load.amounts import smallest_units
from control_plane.load.errors import RowRejected
from control_plane.load.mapping import AccountSpec, DateFormat, Mapping, Rule, Template

EXTERNAL_ID_CHARS_MAX = 180
DESCRIPTION_CHARS_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedAccount:
    external_id: str
    name: str
    description: str | None
    normal_balance: Direction
    currency: str
    currency_exponent: int
    metadata: ReadOnlyMapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEntry:
    account: PlannedAccount
    direction: Direction
    amount: int
    """In the smallest unit of the account's currency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTransaction:
    external_id: str
    effective_at: datetime
    """In UTC."""
    status: Status
    description: str | None
    metadata: ReadOnlyMapping[str, str]
    entries: tuple[PlannedEntry, ...]


def plan_row(mapping: Mapping, row: ReadOnlyMapping[str, str]) -> PlannedTransaction:
    """What the row asks for by the first rule that matches it.

    Raises RowRejected if none does, or if a value the rule needs is missing or malformed.
    """
    spec = mapping.transaction
    rule = _matching_rule(mapping, row)
    return PlannedTransaction(
        external_id=_external_id(spec.external_id, row),
        effective_at=_effective_at(spec.effective_at, row),
        status=spec.status,
        description=_description(rule.description or spec.description, row),
        metadata=_metadata(spec.metadata, row),
        entries=tuple(
            _entry(
                mapping, mapping.accounts[entry.account], entry.direction, entry.amount_column, row
            )
            for entry in rule.entries
        ),
    )


def _matching_rule(mapping: Mapping, row: ReadOnlyMapping[str, str]) -> Rule:
    for rule in mapping.rules:
        if all(condition.holds(row) for condition in rule.conditions):
            return rule
    asked = dict.fromkeys(c.column for rule in mapping.rules for c in rule.conditions)
    values = ", ".join(f"{column} = {row[column]!r}" for column in asked)
    raise RowRejected(f"no rule matches: {values}")


def _entry(
    mapping: Mapping,
    spec: AccountSpec,
    direction: Direction,
    amount_column: str,
    row: ReadOnlyMapping[str, str],
) -> PlannedEntry:
    amount = smallest_units(row[amount_column], spec.currency_exponent, mapping.transaction.amount)
    account = PlannedAccount(
        external_id=_external_id(spec.external_id, row),
        name=spec.name.fill(row),
        description=_description(spec.description, row),
        normal_balance=spec.normal_balance,
        currency=spec.currency,
        currency_exponent=spec.currency_exponent,
        metadata=_metadata(spec.metadata, row),
    )
    return PlannedEntry(account=account, direction=direction, amount=amount)


def _external_id(template: Template, row: ReadOnlyMapping[str, str]) -> str:
    # An empty part would silently merge what belongs to different accounts or transactions.
    for column in template.columns:
        if not row[column]:
            raise RowRejected(f"column {column!r} is empty, and an external id needs it")
    external_id = template.fill(row)
    if len(external_id) > EXTERNAL_ID_CHARS_MAX:
        raise RowRejected(
            f"external id {external_id!r} is above {EXTERNAL_ID_CHARS_MAX} characters"
        )
    return external_id


def _description(template: Template | None, row: ReadOnlyMapping[str, str]) -> str | None:
    if template is None:
        return None
    description = template.fill(row)
    if len(description) > DESCRIPTION_CHARS_MAX:
        raise RowRejected(f"the description is above {DESCRIPTION_CHARS_MAX} characters")
    return description or None


def _metadata(
    templates: ReadOnlyMapping[str, Template], row: ReadOnlyMapping[str, str]
) -> dict[str, str]:
    filled = {name: template.fill(row) for name, template in templates.items()}
    return {name: value for name, value in filled.items() if value}


def _effective_at(written: DateFormat, row: ReadOnlyMapping[str, str]) -> datetime:
    text = row[written.column]
    try:
        moment = datetime.strptime(text, written.format)
    except ValueError as exc:
        raise RowRejected(f"date {text!r} is not in the format {written.format!r}") from exc
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=written.timezone)
    # strptime takes a number with fewer digits, so "93111" would be a guess at where to cut it.
    if written.fixed_width and moment.strftime(written.format) != text:
        raise RowRejected(f"date {text!r} is not in the format {written.format!r}")
    try:
        return moment.astimezone(UTC)
    except OverflowError as exc:
        raise RowRejected(f"date {text!r} is out of range") from exc
