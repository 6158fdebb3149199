"""Reads a mapping file: YAML in, `Mapping` out, or every problem with its line.

The keys are described in `examples/berka.yaml`. Opens no data file: whether the columns are there
is asked by `require_columns` once the header is known.
"""

import codecs
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from pathlib import Path
from zoneinfo import ZoneInfo

from cell.errors import Unprocessable
from cell.ledger.currencies import EXPONENT_MAX, resolve_exponent
from cell.ledger.model import Direction, Status
from control_plane.errors import Problem, TopologyInvalid
from control_plane.load.amounts import AmountFormat
from control_plane.load.errors import MappingInvalid
from control_plane.load.mapping import (
    AccountSpec,
    Column,
    Condition,
    DateFormat,
    EntrySpec,
    FileFormat,
    LedgerSpec,
    Mapping,
    Rule,
    Template,
    TransactionSpec,
)
from control_plane.yaml_sections import Section, read_root, suggestion

DATASET = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
_NOTHING = Template(parts=())
_ADJACENT_NUMBERS = re.compile(r"%[dmyYHMSfj]%[dmyYHMSfj]")


def load_mapping(path: Path) -> Mapping:
    """The mapping in the file at `path`. Raises MappingInvalid."""
    try:
        content = path.read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as exc:
        problem = Problem(line=1, reason=f"cannot be read: {exc}", remedy="check the path")
        raise MappingInvalid(str(path), [problem]) from exc
    return parse_mapping(text, str(path))


def parse_mapping(text: str, file: str) -> Mapping:
    """The mapping that `text` describes; `file` only names it. Raises MappingInvalid."""
    try:
        root = read_root(text, file)
    except TopologyInvalid as exc:
        raise MappingInvalid(file, exc.problems) from exc
    reader = _MappingReader()
    mapping = reader.read(root, text, file)
    if root.problems:
        raise MappingInvalid(file, root.problems)
    return mapping


def require_columns(mapping: Mapping, header: Sequence[str], data_file: str) -> None:
    """Raises MappingInvalid unless the data file has every column that the mapping mentions."""
    problems = [
        Problem(
            line=column.line,
            reason=f"{data_file} has no column {column.name!r}",
            remedy=suggestion(column.name, header),
        )
        for column in mapping.columns
        if column.name not in header
    ]
    if problems:
        raise MappingInvalid(mapping.file, problems)


class _MappingReader:
    """One pass over the file; keeps which columns were mentioned where."""

    def __init__(self) -> None:
        self.columns: list[Column] = []

    def read(self, root: Section, text: str, file: str) -> Mapping:
        dataset = _required(root, "dataset")
        if dataset and not DATASET.fullmatch(dataset):
            root.note_key(
                "dataset", f"dataset is {dataset!r}", "use a-z, 0-9, '_', '.', '-', at most 63"
            )
        file_format = _read_format(root.section("file", "file"))
        ledger = _read_ledger(root.section("ledger", "ledger"))
        accounts = self._read_accounts(root.section("accounts", "accounts"))
        transaction = self._read_transaction(root.section("transactions", "transactions"))
        rules = self._read_rules(root, accounts, transaction.amount_column)
        root.close()
        return Mapping(
            file=file,
            digest=hashlib.sha256(text.encode()).hexdigest(),
            dataset=dataset,
            format=file_format,
            ledger=ledger,
            accounts=accounts,
            transaction=transaction,
            rules=rules,
            columns=tuple(self.columns),
        )

    def _read_accounts(self, section: Section) -> dict[str, AccountSpec]:
        if not section.names:
            section.note(section.line, "there are no accounts", "describe at least two")
        accounts = {}
        for name in section.names:
            spec = section.section(name, f"accounts.{name}")
            accounts[name] = self._read_account(spec)
        return accounts

    def _read_account(self, section: Section) -> AccountSpec:
        _require(section, "external_id", "name", "normal_balance")
        currency, exponent = _read_currency(section)
        normal_balance = section.choice("normal_balance", "credit", _words(Direction))
        account = AccountSpec(
            external_id=self._template(section, "external_id") or _NOTHING,
            name=self._template(section, "name") or _NOTHING,
            description=self._template(section, "description"),
            normal_balance=Direction(normal_balance),
            currency=currency,
            currency_exponent=exponent,
            metadata=self._templates(section.section("metadata")),
        )
        section.close()
        return account

    def _read_transaction(self, section: Section) -> TransactionSpec:
        _require(section, "external_id")
        column, amount = self._read_amount(section.section("amount"))
        transaction = TransactionSpec(
            external_id=self._template(section, "external_id") or _NOTHING,
            effective_at=self._read_date(section.section("effective_at")),
            amount_column=column,
            amount=amount,
            description=self._template(section, "description"),
            status=Status(section.choice("status", "posted", _words(Status))),
            metadata=self._templates(section.section("metadata")),
        )
        section.close()
        return transaction

    def _read_amount(self, section: Section) -> tuple[str, AmountFormat]:
        column = self._column(section, "column")
        decimal_mark = section.text("decimal_mark", ".")
        grouping_mark = section.text("grouping_mark", "")
        if len(decimal_mark) != 1 or decimal_mark.isdigit():
            section.note_key("decimal_mark", f"decimal_mark is {decimal_mark!r}", "one character")
        if len(grouping_mark) > 1 or grouping_mark.isdigit() or grouping_mark == decimal_mark:
            section.note_key(
                "grouping_mark",
                f"grouping_mark is {grouping_mark!r}",
                "one character, another one than decimal_mark, or leave it out",
            )
        written = AmountFormat(
            decimal_mark=decimal_mark,
            grouping_mark=grouping_mark,
            negative_allowed=section.flag("negative_allowed", False),
        )
        section.close()
        return column, written

    def _read_date(self, section: Section) -> DateFormat:
        column = self._column(section, "column")
        pattern = _required(section, "format")
        if pattern and not _reads_dates(pattern):
            section.note_key(
                "format", f"{section.where}.format {pattern!r} reads no date", 'as in "%Y-%m-%d"'
            )
        date = DateFormat(
            column=column,
            format=pattern,
            timezone=_read_timezone(section),
            fixed_width=_ADJACENT_NUMBERS.search(pattern) is not None,
        )
        section.close()
        return date

    def _read_rules(
        self, root: Section, accounts: dict[str, AccountSpec], amount_column: str
    ) -> tuple[Rule, ...]:
        sections = root.sections("rules")
        if not sections:
            root.note_key("rules", "there are no rules", "write at least one")
        rules = [self._read_rule(section, accounts, amount_column) for section in sections]
        for section, rule in zip(sections[:-1], rules[:-1], strict=True):
            if not rule.conditions:
                section.note(
                    section.line,
                    f"{section.where} has no conditions, so no later rule is ever reached",
                    "put it last, or give it a `when`",
                )
        return tuple(rules)

    def _read_rule(
        self, section: Section, accounts: dict[str, AccountSpec], amount_column: str
    ) -> Rule:
        name = section.text("name", section.where)
        when = section.section("when")
        conditions = tuple(self._read_condition(when, column) for column in when.names)
        entries = tuple(
            self._read_entry(entry, accounts, amount_column)
            for entry in section.sections("entries")
        )
        for direction in Direction:
            if section.sound("entries") and all(e.direction is not direction for e in entries):
                section.note(
                    section.line,
                    f"{section.where} has no {direction} entry",
                    f"add `- {direction}: ACCOUNT` to its entries",
                )
        description = self._template(section, "description")
        section.close()
        return Rule(name=name, conditions=conditions, description=description, entries=entries)

    def _read_condition(self, when: Section, column: str) -> Condition:
        self.columns.append(Column(name=column, line=when.line_of(column)))
        if not when.holds_mapping(column):
            return Condition(
                column=column, texts=frozenset(when.texts(column)), pattern=None, negated=False
            )
        section = when.section(column)
        negated = "not" in section.names
        pattern = _read_pattern(section)
        if negated == (pattern is not None):
            section.note(section.line, f"{section.where} is no condition", "`not:` or `matches:`")
        texts = None if pattern is not None else frozenset(section.texts("not"))
        section.close()
        return Condition(column=column, texts=texts, pattern=pattern, negated=negated)

    def _read_entry(
        self, section: Section, accounts: dict[str, AccountSpec], amount_column: str
    ) -> EntrySpec:
        sides = [direction for direction in Direction if direction.value in section.names]
        if len(sides) != 1:
            section.note(
                section.line, f"{section.where} has not one side", "`debit: ACCOUNT` or `credit:`"
            )
        for side in Direction:
            account = section.text(side.value, "")
            if side in sides and account not in accounts and section.sound(side.value):
                section.note_key(
                    side.value, f"there is no account {account!r}", suggestion(account, accounts)
                )
        direction = sides[0] if sides else Direction.DEBIT
        account = section.text(direction.value, "")
        if "amount" in section.names:
            amount_column = self._column(section, "amount")
        section.close()
        return EntrySpec(account=account, direction=direction, amount_column=amount_column)

    def _column(self, section: Section, key: str) -> str:
        name = _required(section, key)
        if name:
            self.columns.append(Column(name=name, line=section.line_of(key)))
        return name

    def _template(self, section: Section, key: str) -> Template | None:
        text = section.optional_text(key)
        if text is None:
            return None
        parts: list[tuple[str, str | None]] = []
        literal, position = "", 0
        for match in _PLACEHOLDER.finditer(text):
            literal += text[position : match.start()]
            position = match.end()
            if match[1] is not None:
                parts.append((literal, match[1]))
                self.columns.append(Column(name=match[1], line=section.line_of(key)))
                literal = ""
            elif len(match[0]) == 2:
                literal += match[0][0]
            else:
                section.note_key(
                    key,
                    f"{section.where}.{key} has a lone {match[0]!r}",
                    "write {column}, or {{ and }} for braces",
                )
        return Template(parts=(*parts, (literal + text[position:], None)))

    def _templates(self, section: Section) -> dict[str, Template]:
        templates = {name: self._template(section, name) for name in section.names}
        return {name: template for name, template in templates.items() if template is not None}


def _require(section: Section, *keys: str) -> None:
    for key in keys:
        if key not in section.names:
            section.note(section.line, f"{section.where} has no key {key!r}", "add it")


def _required(section: Section, key: str) -> str:
    _require(section, key)
    return section.text(key, "")


def _words(enum: type[StrEnum]) -> list[str]:
    return [member.value for member in enum]


def _read_format(section: Section) -> FileFormat:
    encoding = section.text("encoding", "utf-8")
    try:
        codecs.lookup(encoding)
        "".encode(encoding)
    except LookupError:
        section.note_key("encoding", f"{encoding!r} is no text encoding", "as in utf-8, latin-1")
    delimiter, quote = section.text("delimiter", ","), section.text("quote", '"')
    for key, mark in (("delimiter", delimiter), ("quote", quote)):
        if len(mark) != 1 or mark in "\r\n":
            section.note_key(key, f"file.{key} is {mark!r}", "one character")
    if delimiter == quote:
        section.note_key("quote", "file.quote is the delimiter too", "take another character")
    columns = section.texts("columns")
    if len(set(columns)) != len(columns) or "" in columns:
        section.note_key("columns", "file.columns has a name twice or empty", "name each once")
    read = FileFormat(
        encoding=encoding,
        delimiter=delimiter,
        quote=quote,
        trims=section.flag("trim", True),
        columns=columns,
    )
    section.close()
    return read


def _read_ledger(section: Section) -> LedgerSpec:
    metadata = section.section("metadata")
    ledger = LedgerSpec(
        name=_required(section, "name"),
        description=section.optional_text("description"),
        metadata={name: metadata.text(name, "") for name in metadata.names},
    )
    section.close()
    return ledger


def _read_currency(section: Section) -> tuple[str, int]:
    currency = _required(section, "currency")
    given = section.optional_integer("currency_exponent", 0, EXPONENT_MAX)
    if not currency or not section.sound("currency", "currency_exponent"):
        return currency, 0
    try:
        return currency, resolve_exponent(currency, given)
    except Unprocessable as exc:
        key = exc.parameter or "currency"
        remedy = "an ISO code has an exponent of its own, any other code needs one"
        section.note_key(key, f"{section.where}: {exc.message}", remedy)
        return currency, 0


def _read_timezone(section: Section) -> tzinfo:
    name = section.text("timezone", "UTC")
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        remedy = "as in Europe/Prague, or UTC"
        section.note_key("timezone", f"timezone {name!r} is unknown here", remedy)
        return UTC


def _read_pattern(section: Section) -> re.Pattern[str] | None:
    if "matches" not in section.names:
        return None
    text = section.text("matches", "")
    try:
        return re.compile(text)
    except re.error as exc:
        section.note_key("matches", f"{text!r} is no regular expression: {exc}", "see Python's re")
        return re.compile("")


def _reads_dates(pattern: str) -> bool:
    # A format without a year, month or day reads back another date than the one written.
    probe = datetime(2004, 10, 21, tzinfo=UTC)
    try:
        return datetime.strptime(probe.strftime(pattern), pattern).date() == probe.date()
    except ValueError:
        return False
