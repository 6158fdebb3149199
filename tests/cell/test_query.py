"""Method: query strings as the SDK writes them, then what it would not write."""

from urllib.parse import urlencode

import pytest

from cell.errors import InvalidRequest, Unprocessable
from cell.ledger.model import Direction, Status
from cell.query import Query

ID = "0194f7f3-0000-7000-8000-00000000000a"


def query(*pairs: tuple[str, str]) -> Query:
    return Query(urlencode(pairs).encode())


def test_values_as_the_sdk_writes_them() -> None:
    asked = Query(
        b"external_id=a%2Fb+c&id%5B%5D=" + ID.encode() + b"&metadata%5BEntity+Type%5D=Loan+%26"
        b"&status%5B%5D=pending&status%5B%5D=posted&show_deleted=true&direction=debit&x%5By%5D=z"
    )
    assert asked.text("external_id") == "a/b c"
    assert asked.uuids("id") == [ID]
    assert asked.mapping("metadata") == {"Entity Type": "Loan &"}
    assert asked.choices("status", Status) == ["pending", "posted"]
    assert asked.flag("show_deleted")
    assert asked.choice("direction", Direction) == "debit"


def test_absent() -> None:
    asked = Query(b"")
    assert asked.text("a") is None
    assert asked.uuid("a") is None
    assert asked.choice("a", Status) is None
    assert asked.texts("a") == asked.uuids("a") == asked.choices("a", Status) == []
    assert asked.mapping("a") == {}
    assert not asked.flag("a")


def test_scalar_and_array_forms_are_one() -> None:
    assert query(("status", "pending")).choices("status", Status) == ["pending"]
    assert query(("status", "pending"), ("status[]", "posted")).choices("status", Status) == [
        "pending",
        "posted",
    ]


@pytest.mark.parametrize("key", ["a.b", "__proto__", "$where", "a[b]", "%", "'", '"', "é 😀"])
def test_metadata_keys_are_verbatim(key: str) -> None:
    assert query((f"metadata[{key}]", "v")).mapping("metadata") == {key: "v"}


def test_ids_are_read_in_any_case() -> None:
    assert query(("ledger_id", ID.upper())).uuid("ledger_id") == ID


@pytest.mark.parametrize(
    ("pairs", "read", "parameter"),
    [
        ([("a", "1"), ("a", "2")], lambda q: q.text("a"), "a"),
        ([("a[k]", "1"), ("a[k]", "2")], None, "a"),
        ([("a[k", "1")], None, "a"),
        ([("a", "1")], lambda q: q.mapping("a"), "a"),
        ([("a[k]", "1")], lambda q: q.text("a"), "a"),
        ([("a", "yes")], lambda q: q.flag("a"), "a"),
        ([("a", "x")], lambda q: q.uuid("a"), "a"),
        ([("id[]", ID), ("id[]", "x")], lambda q: q.uuids("id"), "id"),
        ([("status", "open")], lambda q: q.choices("status", Status), "status"),
        ([("a", "\0")], None, "a"),
    ],
)
def test_refused(pairs: list[tuple[str, str]], read, parameter: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Unprocessable) as refused:
        asked = query(*pairs)
        read(asked)
    assert refused.value.parameter == parameter


@pytest.mark.parametrize("text", [b"a=%ff", b"a=\xff", b"&".join([b"a=1"] * 1001)])
def test_malformed(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        Query(text)
