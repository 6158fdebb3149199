"""Method: the documented example is valid; then it is broken one way at a time, and every problem
is reported with its line and a way out."""

import csv
import gzip
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.ledger.model import Direction, Status
from control_plane.load.errors import MappingInvalid, RowRejected
from control_plane.load.mapping import Mapping
from control_plane.load.mapping_file import load_mapping, parse_mapping, require_columns
from control_plane.load.plan import PlannedTransaction, plan_row

EXAMPLE = Path(__file__).parents[2] / "examples" / "berka.yaml"
COLUMNS = (
    "trans_id", "account_id", "date", "type", "operation", "amount", "balance", "k_symbol", "bank",
    "account",
)  # fmt: skip

SMALL = """\
dataset: small
ledger: {name: Small}
accounts:
  cash: {external_id: cash, name: Cash, normal_balance: debit, currency: EUR}
  customer: {external_id: "c:{who}", name: "{who}", normal_balance: credit, currency: EUR}
transactions:
  external_id: "{id}"
  effective_at: {column: day, format: "%Y-%m-%d"}
  amount: {column: amount}
rules:
  - {when: {kind: in}, entries: [{debit: cash}, {credit: customer}]}
  - {when: {kind: out}, entries: [{debit: customer}, {credit: cash}]}
"""
ROW = {"id": "1", "who": "ann", "day": "2024-02-29", "amount": "1.50", "kind": "in", "note": ""}


def plan(mapping: Mapping, **changed: str) -> PlannedTransaction:
    return plan_row(mapping, {**ROW, **changed})


def test_the_example_is_valid_and_covers_the_columns() -> None:
    mapping = load_mapping(EXAMPLE)
    require_columns(mapping, COLUMNS, "trans.asc")
    assert mapping.dataset == "berka"
    assert mapping.format.delimiter == ";"
    assert mapping.accounts["customer"].normal_balance is Direction.CREDIT
    assert mapping.transaction.status is Status.POSTED


def test_a_row_becomes_a_balanced_transaction() -> None:
    planned = plan(parse_mapping(SMALL, "small.yaml"))
    assert planned.external_id == "1"
    assert planned.effective_at == datetime(2024, 2, 29, tzinfo=UTC)
    assert planned.description is None
    assert [(e.account.external_id, e.direction, e.amount) for e in planned.entries] == [
        ("cash", "debit", 150),
        ("c:ann", "credit", 150),
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("dataset: small\n", "", 1, "no key 'dataset'"),
        ("dataset: small", "dataset: Small Bank", 1, "dataset is 'Small Bank'"),
        ("dataset: small", "dataset: small\ndataset: again", 2, "'dataset' twice"),
        ("dataset: small", "dataset: small\nfoo: 1", 2, "has no key 'foo'"),
        ("{name: Small}", "{name: 5}", 2, "ledger.name is '5'"),
        ("{name: Small}", "{title: Small}", 2, "ledger has no key 'name'"),
        ("{name: Small}", "{name: S, metadata: {a: [1]}}", 2, "ledger.metadata.a is a list"),
        ("currency: EUR}\n  customer", "currency: EU R}\n  customer", 4, "a code has 1 to 32"),
        ("currency: EUR}\n  customer", "currency: PTS}\n  customer", 4, "needs an exponent"),
        (
            "currency: EUR}\n  customer",
            "currency: EUR, currency_exponent: 3}\n  customer",
            4,
            "EUR has exponent 2, not 3",
        ),
        (
            "currency: EUR}\n  customer",
            "currency: PTS, currency_exponent: 31}\n  customer",
            4,
            "outside 0 to 30",
        ),
        ("normal_balance: debit", "normal_balance: debits", 4, "did you mean 'debit'?"),
        ("normal_balance: debit, ", "", 4, "no key 'normal_balance'"),
        ("external_id: cash, ", "", 4, "no key 'external_id'"),
        ('"c:{who}"', '"c:{who"', 5, "a lone '{'"),
        ('"c:{who}"', '"c:who}"', 5, "a lone '}'"),
        ('  external_id: "{id}"\n', "", 7, "transactions has no key 'external_id'"),
        ('"%Y-%m-%d"', '"%d.%m."', 8, "reads no date"),
        ('"%Y-%m-%d"', '"%Q"', 8, "reads no date"),
        ('"%Y-%m-%d"', '"%Y-%m-%d", timezone: Moon/Base', 8, "'Moon/Base' is unknown"),
        ("{column: day", "{colum: day", 8, "did you mean 'column'?"),
        ("{column: amount}", "{column: amount, decimal_mark: dot}", 9, "decimal_mark is 'dot'"),
        ("{column: amount}", "{column: amount, grouping_mark: .}", 9, "grouping_mark is '.'"),
        ("{column: amount}", "{column: amount, negative_allowed: maybe}", 9, "true or false"),
        ("{column: amount}", "{column: amount}\n  status: poster", 10, "did you mean 'posted'?"),
        ("{debit: cash}, {c", "{debit: bank}, {c", 11, "there is no account 'bank'"),
        ("{debit: cash}, {c", "{debit: cash, credit: cash}, {c", 11, "has not one side"),
        ("{debit: cash}, {c", "{}, {c", 11, "has not one side"),
        ("{debit: cash}, ", "", 11, "has no debit entry"),
        ("{when: {kind: in}, ", "{", 11, "no later rule is ever reached"),
        ("{kind: in}", "{kind: 5}", 11, "quote the value"),
        ("{kind: in}", "{kind: [in, 5]}", 11, "an item of"),
        ("{kind: in}", "{kind: {matches: '('}}", 11, "no regular expression"),
        ("{kind: in}", "{kind: {is: in}}", 11, "is no condition"),
        ("{kind: in}", "{kind: {not: in, matches: x}}", 11, "is no condition"),
        ("rules:", "file: {encoding: latin-99}\nrules:", 10, "'latin-99' is no text encoding"),
        ("rules:", "file: {encoding: base64}\nrules:", 10, "'base64' is no text encoding"),
        ("rules:", "file: {delimiter: '||'}\nrules:", 10, "file.delimiter is '||'"),
        ("rules:", "file: {delimiter: '\"'}\nrules:", 10, "the delimiter too"),
        ("rules:", "file: {columns: [a, a]}\nrules:", 10, "a name twice"),
        ("rules:", "rules: [\n", 12, "not valid YAML"),
    ],
)
def test_a_problem_is_named_with_its_line(old: str, new: str, line: int, reason: str) -> None:
    assert old in SMALL
    with pytest.raises(MappingInvalid) as caught:
        parse_mapping(SMALL.replace(old, new, 1), "small.yaml")
    found = [p for p in caught.value.problems if reason in f"{p.reason}; {p.remedy}"]
    assert found, str(caught.value)
    assert found[0].line == line
    assert f"small.yaml:{line}: " in str(caught.value)


def test_all_problems_are_reported_in_one_go() -> None:
    text = SMALL.replace("EUR", "EU R").replace("kind: in", "kind: 1").replace("name: Small", "")
    with pytest.raises(MappingInvalid) as caught:
        parse_mapping(text, "small.yaml")
    assert [p.line for p in caught.value.problems] == [2, 4, 5, 11]


def test_a_column_that_the_file_has_not_is_named_with_every_line() -> None:
    mapping = parse_mapping(SMALL, "small.yaml")
    with pytest.raises(MappingInvalid) as caught:
        require_columns(mapping, ("id", "whom", "day", "amount", "kind"), "data.csv")
    assert {p.line for p in caught.value.problems} == {5}
    assert "data.csv has no column 'who'; did you mean 'whom'?" in str(caught.value)


def test_a_missing_file_is_a_problem_of_the_mapping(tmp_path: Path) -> None:
    with pytest.raises(MappingInvalid, match="cannot be read"):
        load_mapping(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kind": "transfer"}, "no rule matches: kind = 'transfer'"),
        ({"amount": "1.505"}, "3 decimals"),
        ({"who": ""}, "column 'who' is empty"),
        ({"id": "x" * 181}, "above 180 characters"),
        ({"day": "2023-02-29"}, "not in the format"),
        ({"day": "29.2.2024"}, "not in the format"),
    ],
)
def test_a_row_is_rejected_with_its_reason(changed: dict[str, str], reason: str) -> None:
    with pytest.raises(RowRejected, match=reason):
        plan(parse_mapping(SMALL, "small.yaml"), **changed)


def test_the_first_matching_rule_wins() -> None:
    text = SMALL.replace(
        "rules:", "rules:\n  - {when: {note: rare}, entries: [{debit: customer}, {credit: cash}]}"
    )
    mapping = parse_mapping(text, "small.yaml")
    assert plan(mapping, note="rare").entries[0].account.external_id == "c:ann"
    assert plan(mapping, note="").entries[0].account.external_id == "cash"


@pytest.mark.parametrize(
    ("condition", "kind", "matches"),
    [
        ("in", "in", True),
        ("in", "IN", False),
        ("''", "", True),
        ("[in, into]", "into", True),
        ("[in, into]", "out", False),
        ("{not: out}", "in", True),
        ("{not: [in, out]}", "in", False),
        ("{matches: 'i.'}", "in", True),
        ("{matches: 'i'}", "in", False),
    ],
)
def test_conditions(condition: str, kind: str, matches: bool) -> None:
    text = SMALL.replace("{kind: in}", f"{{kind: {condition}}}").replace("kind: out", "kind: '-'")
    mapping = parse_mapping(text, "small.yaml")
    if matches:
        assert plan(mapping, kind=kind)
    else:
        with pytest.raises(RowRejected, match="no rule"):
            plan(mapping, kind=kind)


def test_an_entry_may_take_another_column_and_a_rule_its_own_description() -> None:
    text = SMALL.replace(
        "- {when: {kind: in}, entries: [{debit: cash}, {credit: customer}]}",
        "- description: '{{{note}}}'\n"
        "    entries: [{debit: cash, amount: gross}, {credit: customer}]",
    ).replace("  - {when: {kind: out}, entries: [{debit: customer}, {credit: cash}]}\n", "")
    planned = plan(parse_mapping(text, "small.yaml"), gross="2", note="x")
    assert [e.amount for e in planned.entries] == [200, 150]
    assert planned.description == "{x}"


def test_metadata_leaves_out_what_is_empty() -> None:
    text = SMALL.replace("rules:", '  metadata: {note: "{note}", who: "{who}"}\nrules:')
    assert plan(parse_mapping(text, "small.yaml")).metadata == {"who": "ann"}


def test_dates_without_separators_must_have_the_full_width() -> None:
    mapping = parse_mapping(SMALL.replace("%Y-%m-%d", "%y%m%d"), "small.yaml")
    assert plan(mapping, day="930101").effective_at == datetime(1993, 1, 1, tzinfo=UTC)
    # strptime alone would read 1993-11-01.
    with pytest.raises(RowRejected, match="not in the format"):
        plan(mapping, day="93111")


def test_dates_are_of_their_own_offset_or_of_the_timezone() -> None:
    text = SMALL.replace("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z")
    offset = plan(parse_mapping(text, "small.yaml"), day="2024-02-29T01:00:00+0200")
    assert offset.effective_at == datetime(2024, 2, 28, 23, tzinfo=UTC)
    text = SMALL.replace('"%Y-%m-%d"', '"%Y-%m-%d", timezone: Europe/Prague')
    summer = plan(parse_mapping(text, "small.yaml"), day="2024-07-01")
    assert summer.effective_at.astimezone(timezone(timedelta(hours=2))).hour == 0


@given(
    st.dictionaries(st.sampled_from(sorted(ROW)), st.text(max_size=20)).map(lambda d: {**ROW, **d})
)
def test_any_row_is_planned_balanced_or_rejected(row: dict[str, str]) -> None:
    mapping = parse_mapping(SMALL, "small.yaml")
    try:
        planned = plan_row(mapping, row)
    except RowRejected:
        return
    debit, credit = planned.entries
    assert debit.amount == credit.amount
    assert debit.direction != credit.direction
    assert planned.external_id


DATA = EXAMPLE.parents[1] / ".." / "shared" / "data" / "berka" / "trans.asc.gz"


@pytest.mark.skipif(not DATA.exists(), reason="the bank's data is not there")
def test_every_row_of_the_bank_is_planned() -> None:
    mapping = load_mapping(EXAMPLE)
    with gzip.open(DATA, "rt", encoding="latin-1", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    planned = [plan_row(mapping, {name: text.strip() for name, text in r.items()}) for r in rows]
    customers = sum(
        entry.amount if entry.direction is Direction.CREDIT else -entry.amount
        for transaction in planned
        for entry in transaction.entries
        if entry.account.normal_balance is Direction.CREDIT
    )
    assert customers == 3_924_614_280
