"""Method: the acceptance scenarios of what becomes of a ledger transaction after its creation,
driven by the official SDK with strict response validation, as in `test_scenarios.py`.
"""

# ruff: noqa: F811  # arguments of tests are named after the fixtures they import

from typing import Any

import pytest
from cell_process import Access
from modern_treasury import NotFoundError, UnprocessableEntityError
from test_scenarios import Books, books, client, credit, debit  # noqa: F401  # fixtures

UNKNOWN = "00000000-0000-7000-8000-00000000ffff"


def sides(transaction: Any) -> list[tuple[str, str, int, str]]:
    return [
        (entry.ledger_account_id, entry.direction, entry.amount, entry.status)
        for entry in transaction.ledger_entries
    ]


# A04, A05


def test_pending_to_posted_and_to_archived(books: Books) -> None:
    client = books.client
    books.deposit(10_000)
    moved = books.write(debit(books.alice, 3000), credit(books.cash, 3000), status="pending")
    books.write(debit(books.cash, 2500), credit(books.alice, 2500), status="pending")
    assert versions(books, moved.id) == [0]
    (first,) = client.ledger_transactions.versions.list(ledger_transaction_id=moved.id)

    posted = client.ledger_transactions.update(moved.id, status="posted")
    assert posted.posted_at is not None
    assert books.balances(books.alice) == books.balances(books.cash) == (7000, 9500, 7000)
    entries = list(client.ledger_entries.list(ledger_transaction_id=moved.id))
    assert [entry.status for entry in entries] == ["posted", "posted"]
    everything = list(client.ledger_entries.list(ledger_transaction_id=moved.id, show_deleted=True))
    gone = [entry for entry in everything if entry.discarded_at is not None]
    assert len(everything) == 4
    assert [entry.status for entry in gone] == ["pending", "pending"]
    assert versions(books, moved.id) == [1, 0]
    last, before = client.ledger_transactions.versions.list(ledger_transaction_id=moved.id)
    assert before == first
    assert (before.status, last.status) == ("pending", "posted")
    assert {entry.id for entry in before.ledger_entries} == {entry.id for entry in gone}
    assert {entry.id for entry in last.ledger_entries} == {entry.id for entry in entries}

    held = books.write(
        debit(books.alice, 4000), credit(books.cash, 4000), status="pending", external_id="x1"
    )
    archived = client.ledger_transactions.update(held.id, status="archived")
    assert (archived.status, archived.posted_at) == ("archived", None)
    assert {entry.status for entry in archived.ledger_entries} == {"archived"}
    assert books.balances(books.alice) == (7000, 9500, 7000)
    assert books.deposit(0, external_id="x1").external_id == "x1"


def versions(books: Books, id: str, **filters: Any) -> list[int]:
    found = books.client.ledger_transactions.versions.list(ledger_transaction_id=id, **filters)
    return [version.version for version in found]


# A06


def test_what_is_final_stays(books: Books) -> None:
    update = books.client.ledger_transactions.update
    posted = books.deposit(100, external_id="p")
    archived = books.write(debit(books.cash, 1), credit(books.alice, 1), status="archived")
    assert update(posted.id, status="posted") == posted
    assert update("p", status="posted") == posted
    assert update(archived.id, status="archived") == archived
    assert versions(books, posted.id) == versions(books, archived.id) == [0]
    entries: Any = [debit(books.cash, 2), credit(books.alice, 2)]
    forbidden: list[Any] = [
        {"status": "pending"},
        {"description": "z"},
        {"external_id": "other"},
        {"effective_at": "2024-01-01T00:00:00Z"},
        {"ledgerable_type": "return", "ledgerable_id": "l"},
        {"ledger_entries": entries},
    ]
    for final, change in ((posted, {"status": "archived"}), (archived, {"status": "posted"})):
        for fields in (change, *forbidden):
            with pytest.raises(UnprocessableEntityError) as refused:
                update(final.id, **fields)
            assert refused.value.body["errors"]["parameter"] == "ledger_transaction"  # type: ignore[index]
        assert update(final.id, metadata={"k": "v"}).metadata == {"k": "v"}
        assert versions(books, final.id) == [1, 0]
    assert books.balances(books.alice) == (100, 100, 100)
    assert books.account(books.alice).lock_version == 1


# A11


def test_locks_judge_the_whole_transaction_at_all_times(books: Books) -> None:
    bob_twice = [debit(books.cash, 500), debit(books.bob, 300), credit(books.cash, 300)]
    with pytest.raises(UnprocessableEntityError):
        books.write(credit(books.bob, 500, posted_balance_amount={"eq": 500}), *bob_twice)
    books.write(credit(books.bob, 500, posted_balance_amount={"eq": 200}), *bob_twice)
    books.deposit(100, effective_at="2099-01-01T00:00:00Z")
    books.write(debit(books.alice, 100, posted_balance_amount={"gte": 0}), credit(books.cash, 100))
    assert books.balances(books.alice) == (0, 0, 0)


def test_a_broken_lock_can_be_recorded(books: Books) -> None:
    books.deposit(100)
    record: Any = {"extra_body": {"archive_on_balance_lock_failure": True}}
    spend = [debit(books.alice, 70, available_balance_amount={"gte": 0}), credit(books.cash, 70)]
    done = books.write(*spend, external_id="s", **record)
    assert (done.status, done.archived_reason) == ("posted", None)
    declined = books.write(*spend, external_id="t", idempotency_key="d", **record)
    assert (declined.status, declined.archived_reason) == ("archived", "balance_lock_failure")
    assert {entry.status for entry in declined.ledger_entries} == {"archived"}
    assert declined.posted_at is None
    assert books.client.ledger_transactions.retrieve(declined.id) == declined
    assert books.write(*spend, idempotency_key="d") == declined
    assert books.balances(books.alice) == (30, 30, 30)
    assert books.account(books.alice).lock_version == 2
    # Only for the locks on balances; it holds no external id.
    stale = [debit(books.alice, 1, lock_version=0), credit(books.cash, 1)]
    for entries in (stale, [debit(books.alice, 1), credit(books.cash, 2)]):
        with pytest.raises(UnprocessableEntityError):
            books.write(*entries, **record)
    assert books.deposit(1, external_id="t").status == "posted"
    with pytest.raises(UnprocessableEntityError, match="new ledger transactions"):
        books.client.ledger_transactions.update(done.id, **record)


# A19


def test_editing_a_pending_transaction(books: Books) -> None:
    client = books.client
    pending = books.write(
        debit(books.alice, 300, metadata={"a": "1"}, effective_at="2024-01-02T00:00:00Z"),
        credit(books.cash, 300),
        status="pending",
        effective_at="2024-01-01T00:00:00Z",
        external_id="e",
    )
    entry = pending.ledger_entries[0]
    assert entry.effective_at.day == 2
    entries: Any = [debit(books.alice, 500), credit(books.cash, 500)]
    edited = client.ledger_transactions.update(pending.id, ledger_entries=entries)
    assert books.balances(books.alice)[1] == -500
    assert [entry.metadata for entry in edited.ledger_entries] == [{}, {}]
    assert {entry.effective_at for entry in edited.ledger_entries} == {edited.effective_at}
    assert client.ledger_entries.retrieve(entry.id).discarded_at is not None
    shown = client.ledger_entries.list(ledger_transaction_id=pending.id)
    everything = client.ledger_entries.list(ledger_transaction_id=pending.id, show_deleted=True)
    assert entry.id not in [each.id for each in shown]
    assert entry.id in [each.id for each in everything]

    # What becomes of the metadata of an entry that is gone is not part of the version it was in.
    client.ledger_entries.update(entry.id, metadata={"a": "", "b": "2"})
    last, first = client.ledger_transactions.versions.list(ledger_transaction_id=pending.id)
    assert (last.version, first.version) == (1, 0)
    assert [entry.amount for entry in first.ledger_entries] == [300, 300]
    assert first.ledger_entries[0].metadata == {"a": "1"}
    assert (first.created_at, last.created_at) == (pending.created_at, edited.updated_at)

    client.ledger_transactions.update("e", metadata={"x": "1"})
    change = {"y": "2", "x": ""}
    assert client.ledger_transactions.update("e", metadata=change).metadata == {"y": "2"}
    with pytest.raises(UnprocessableEntityError):
        client.ledger_transactions.update(
            pending.id,
            ledger_entries=[entries[0], credit(books.cash, 1)],  # type: ignore[list-item]
        )
    assert books.balances(books.alice)[1] == -500
    # Replaced, dated and posted at once; unknown entries of a known transaction are told as such.
    final = client.ledger_transactions.update(
        "e", ledger_entries=entries, status="posted", effective_at="2024-03-01T00:00:00Z"
    )
    assert (final.status, final.effective_date.month) == ("posted", 3)
    with pytest.raises(NotFoundError):
        client.ledger_transactions.update(UNKNOWN, status="posted")


def test_versions_are_listed(books: Books, access: Access) -> None:
    transactions = books.client.ledger_transactions
    first = books.deposit(1)
    second = books.write(debit(books.cash, 2), credit(books.alice, 2), status="pending")
    for number in range(3):
        transactions.update(second.id, description=str(number))
    transactions.update(first.id, metadata={"k": "v"})
    expected = [(second.id, 3), (second.id, 2), (second.id, 1), (second.id, 0)]
    expected += [(first.id, 1), (first.id, 0)]
    for per_page in (1, 4, 6):
        found = list(transactions.versions.list(per_page=per_page))
        assert [(v.ledger_transaction_id, v.version) for v in found] == expected
    assert len({version.id for version in found}) == 6
    assert versions(books, second.id, per_page=1) == [3, 2, 1, 0]
    assert versions(books, second.id, version={"gt": 0, "lte": 2}) == [2, 1]
    assert versions(books, second.id, created_at={"gt": found[2].created_at}) == [3, 2]
    assert versions(books, second.id, version={"eq": 9}) == []
    with pytest.raises(NotFoundError):
        versions(books, UNKNOWN)
    with access.http() as http:
        path = f"/api/ledger_transactions/{second.id}/versions"
        ids = [found[0].id, found[3].id, found[4].id, UNKNOWN]
        answer = http.get(path, params={"id[]": ids})
        assert [each["version"] for each in answer.json()] == [3, 0]
        assert [each["description"] for each in answer.json()] == ["2", None]
        assert http.get("/api/ledger_transactions/x/versions").status_code == 404
        assert http.get(path, params={"version[is]": "1"}).status_code == 422
        unknown = http.get(path, params={"ledger_account_statement_id": UNKNOWN})
        assert unknown.status_code == 404
        assert unknown.json()["errors"]["parameter"] == "ledger_account_statement_id"


# A20


def test_partial_post(books: Books) -> None:
    transactions = books.client.ledger_transactions
    deposit = books.deposit(1000)
    pending = books.write(debit(books.alice, 1000), credit(books.cash, 1000), status="pending")
    assert books.balances(books.alice) == (1000, 0, 0)

    def part(amount: int, *entries: Any, **fields: Any) -> Any:
        both = entries or (debit(books.alice, amount), credit(books.cash, amount))
        of = fields.pop("of", pending.id)
        return transactions.create_partial_post(of, posted_ledger_entries=both, **fields)

    done = part(400, idempotency_key="p", description="d", metadata={"k": "v", "none": ""})
    assert (done.status, done.partially_posts_ledger_transaction_id) == ("posted", pending.id)
    assert (done.description, done.metadata, done.external_id) == ("d", {"k": "v"}, None)
    assert done.posted_at is not None
    assert sides(done) == [
        (books.alice, "debit", 400, "posted"),
        (books.cash, "credit", 400, "posted"),
    ]
    assert part(1, idempotency_key="p") == done
    assert transactions.retrieve(done.id) == done
    rest = transactions.retrieve(pending.id)
    assert rest.status == "pending"
    assert sides(rest) == [
        (books.alice, "debit", 600, "pending"),
        (books.cash, "credit", 600, "pending"),
    ]
    assert books.balances(books.alice) == (600, 0, 0)
    # One write: both sets of entries made the same version of the account.
    versions = {e.ledger_account_lock_version for e in (*done.ledger_entries, *rest.ledger_entries)}
    assert versions == {books.account(books.alice).lock_version} == {3}

    refused: list[tuple[Any, ...]] = [
        (debit(books.alice, 600), credit(books.cash, 600)),
        (debit(books.alice, 500),),
        (debit(books.alice, 500), credit(books.cash, 400)),
        (credit(books.alice, 100), debit(books.cash, 100)),
        (debit(books.alice, 100), credit(books.cash, 100), credit(books.cash, 0)),
        (debit(books.alice, 1, posted_balance_amount={"gte": 600}), credit(books.cash, 1)),
        (debit(books.alice, 1, lock_version=1), credit(books.cash, 1)),
    ]
    for entries in refused:
        with pytest.raises(UnprocessableEntityError, match="posted_ledger_entries"):
            part(0, *entries)
    with pytest.raises(UnprocessableEntityError, match="ledger_transaction"):
        part(1, of=deposit.id)
    for unknown in (UNKNOWN, "x"):
        with pytest.raises(NotFoundError):
            part(1, of=unknown)
    assert transactions.retrieve(pending.id) == rest

    locked = debit(
        books.alice,
        100,
        lock_version=3,
        posted_balance_amount={"eq": 500},
        available_balance_amount={"eq": 0},
        show_resulting_ledger_account_balances=True,
    )
    resulting = part(0, locked, credit(books.cash, 100)).ledger_entries[0]
    assert resulting.resulting_ledger_account_balances.posted_balance.amount == 500
    transactions.update(pending.id, status="posted")
    assert books.balances(books.alice) == (0, 0, 0)
    parts = transactions.list(partially_posts_ledger_transaction_id=pending.id)
    assert done.id in [each.id for each in parts]
    assert len(parts.items) == 2


# A21


def as_of_date(books: Books, date: str) -> tuple[int, int, int]:
    """ALICE's posted, pending and available balance at the end of that day."""
    asked: Any = {"as_of_date": date}
    of = books.client.ledger_accounts.retrieve(books.alice, balances=asked).balances
    return of.posted_balance.amount, of.pending_balance.amount, of.available_balance.amount


def test_reversal(books: Books) -> None:
    transactions = books.client.ledger_transactions
    original = books.deposit(1000, effective_at="2024-05-01T00:00:00Z", external_id="o")
    assert as_of_date(books, "2024-05-01") == (1000, 1000, 1000)
    reversal = transactions.create_reversal(original.id, idempotency_key="r")
    assert (reversal.status, reversal.effective_at) == ("posted", original.effective_at)
    assert reversal.reverses_ledger_transaction_id == original.id
    assert sides(reversal) == [
        (books.cash, "credit", 1000, "posted"),
        (books.alice, "debit", 1000, "posted"),
    ]
    assert transactions.create_reversal(original.id, idempotency_key="r") == reversal
    assert transactions.retrieve(original.id).reversed_by_ledger_transaction_id == reversal.id
    assert books.balances(books.alice) == (0, 0, 0)
    # It undoes its original from the original's own day on.
    assert as_of_date(books, "2024-05-01") == as_of_date(books, "2024-04-30") == (0, 0, 0)
    found = transactions.list(reverses_ledger_transaction_id=original.id)
    assert [each.id for each in found] == [reversal.id]
    with pytest.raises(UnprocessableEntityError, match="ledger_transaction"):
        transactions.create_reversal(original.id)
    for unknown in (UNKNOWN, "x"):
        with pytest.raises(NotFoundError):
            transactions.create_reversal(unknown)


def test_pending_reversal_holds_its_original_until_it_is_archived(books: Books) -> None:
    transactions = books.client.ledger_transactions
    original = books.deposit(1000, external_id="o")
    with pytest.raises(UnprocessableEntityError, match="external_id"):
        transactions.create_reversal(original.id, external_id="o")
    pending = transactions.create_reversal(original.id, status="pending", external_id="r")
    assert books.balances(books.alice) == (1000, 0, 0)
    with pytest.raises(UnprocessableEntityError):
        transactions.create_reversal(original.id)
    with pytest.raises(UnprocessableEntityError):
        transactions.create_reversal(pending.id)

    archived = transactions.update(pending.id, status="archived")
    assert archived.reverses_ledger_transaction_id == original.id
    assert transactions.retrieve(original.id).reversed_by_ledger_transaction_id is None
    stillborn = transactions.create_reversal(original.id, status="archived")
    assert stillborn.reverses_ledger_transaction_id == original.id
    assert transactions.retrieve(original.id).reversed_by_ledger_transaction_id is None
    again = transactions.create_reversal(
        original.id,
        external_id="r",
        description="d",
        metadata={"k": "v"},
        effective_at="2024-05-01T00:00:00Z",
        ledgerable_type="return",
        ledgerable_id="l",
    )
    assert (again.external_id, again.description, again.metadata) == ("r", "d", {"k": "v"})
    assert (again.ledgerable_type, again.ledgerable_id) == ("return", "l")
    assert {e.effective_at for e in again.ledger_entries} == {again.effective_at}
    # With a time of its own it does so at that time, here before there was anything to undo.
    assert as_of_date(books, "2024-05-01") == (-1000, -1000, -1000)
    assert transactions.retrieve(original.id).reversed_by_ledger_transaction_id == again.id
    assert books.balances(books.alice) == (0, 0, 0)


def test_what_was_reversed_in_part_cannot_be_reversed_as_a_whole(books: Books) -> None:
    """Whatever becomes of the rest of the reversal: nothing is undone twice."""
    transactions = books.client.ledger_transactions
    original = books.deposit(1000)
    reversal = transactions.create_reversal(original.id, status="pending")

    def part(amount: int) -> Any:
        entries = (debit(books.alice, amount), credit(books.cash, amount))
        return transactions.create_partial_post(reversal.id, posted_ledger_entries=entries)

    def reversed_by() -> Any:
        return transactions.retrieve(original.id).reversed_by_ledger_transaction_id

    first = part(400)
    assert first.partially_posts_ledger_transaction_id == reversal.id
    assert first.reverses_ledger_transaction_id == original.id
    assert reversed_by() == first.id
    assert versions(books, original.id) == [2, 1, 0]
    second = part(100)
    assert second.reverses_ledger_transaction_id == original.id
    assert reversed_by() == first.id
    found = transactions.list(reverses_ledger_transaction_id=original.id)
    assert [each.id for each in found] == [second.id, first.id, reversal.id]

    rest = transactions.update(reversal.id, status="archived")
    assert rest.reverses_ledger_transaction_id == original.id
    assert reversed_by() == first.id
    assert versions(books, original.id) == [2, 1, 0]
    for status in ("posted", "pending", "archived"):
        with pytest.raises(UnprocessableEntityError, match=first.id):
            transactions.create_reversal(original.id, status=status)
    assert books.balances(books.alice) == (500, 500, 500)


def test_a_reversal_posted_in_parts_comes_to_the_whole(books: Books) -> None:
    transactions = books.client.ledger_transactions
    original = books.deposit(1000)
    reversal = transactions.create_reversal(original.id, status="pending")
    entries = (debit(books.alice, 400), credit(books.cash, 400))
    part = transactions.create_partial_post(reversal.id, posted_ledger_entries=entries)
    transactions.update(reversal.id, status="posted")
    assert books.balances(books.alice) == (0, 0, 0)
    assert transactions.retrieve(original.id).reversed_by_ledger_transaction_id == part.id
    with pytest.raises(UnprocessableEntityError, match="ledger_transaction"):
        transactions.create_reversal(original.id)
    # A part is a transaction like any other, and can be undone as one.
    undone = transactions.create_reversal(part.id)
    assert undone.reverses_ledger_transaction_id == part.id
    assert books.balances(books.alice) == (400, 400, 400)
