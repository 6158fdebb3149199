"""Method: as `test_scenarios`: monitors and events of one tenant, driven
by the official SDK with strict response validation, against a cell alone and through a router.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from cell_process import Access
from modern_treasury import NotFoundError
from test_scenarios import Books, credit, debit, new_books


@pytest.fixture
def books(access: Access) -> Iterator[Books]:
    with access.sdk() as client:
        yield new_books(client)


def monitor(books: Books, field: str, operator: str, value: int, **fields: Any) -> Any:
    return books.client.ledger_account_balance_monitors.create(
        ledger_account_id=books.alice,
        alert_condition={"field": field, "operator": operator, "value": value},
        **fields,
    )


def is_triggered(books: Books, id: str) -> bool:
    found = books.client.ledger_account_balance_monitors.retrieve(id)
    return found.current_ledger_account_balance_state.triggered


def test_monitors_follow_their_account(books: Books) -> None:
    monitors = books.client.ledger_account_balance_monitors
    low = monitor(books, "available_balance_amount", "less_than", 100, metadata={"a": "1"})
    state = low.current_ledger_account_balance_state
    assert (state.triggered, state.ledger_account_lock_version) == (True, 0)
    assert state.balances.available_balance.amount == 0
    books.deposit(500)
    assert not is_triggered(books, low.id)
    pending = books.write(debit(books.alice, 401), credit(books.cash, 401), status="pending")
    assert is_triggered(books, low.id)
    books.client.ledger_transactions.update(pending.id, status="archived")
    assert not is_triggered(books, low.id)

    version = books.account(books.alice).lock_version
    exact = monitor(books, "ledger_account_lock_version", "equals", version)
    assert exact.current_ledger_account_balance_state.triggered
    books.deposit(1)
    assert not is_triggered(books, exact.id)
    others = [
        monitor(books, "posted_balance_amount", "greater_than", -(10**40)),
        monitor(books, "pending_balance_amount", "greater_than_or_equals", 501),
        monitor(books, "posted_balance_amount", "less_than_or_equals", 500),
    ]
    assert [is_triggered(books, each.id) for each in others] == [True, True, False]

    listed = list(monitors.list(ledger_account_id=books.alice, per_page=2))
    assert [each.id for each in listed] == [
        each.id for each in (*reversed(others), exact, monitors.retrieve(low.id))
    ]
    assert [each.id for each in monitors.list(metadata={"a": "1"})] == [low.id]
    assert [each.id for each in monitors.list(id=[exact.id])] == [exact.id]
    assert not monitors.list(ledger_account_id=books.bob).items


def test_monitors_are_changed_and_deleted(books: Books) -> None:
    monitors = books.client.ledger_account_balance_monitors
    made = monitor(books, "available_balance_amount", "less_than", 100)
    changed = monitors.update(made.id, description="low", metadata={"k": "v"})
    assert (changed.description, changed.metadata) == ("low", {"k": "v"})
    other = {"field": "posted_balance_amount", "operator": "equals", "value": 1}
    assert monitors.update(made.id, extra_body={"alert_condition": other}) == changed
    found = monitors.retrieve(made.id)
    assert found == changed
    assert found.alert_condition.value == 100

    gone = monitors.delete(made.id)
    assert gone.discarded_at is not None
    assert monitors.delete(made.id) == gone
    with pytest.raises(NotFoundError):
        monitors.retrieve(made.id)
    with pytest.raises(NotFoundError):
        monitors.update(made.id, description="x")
    assert not monitors.list(ledger_account_id=books.alice).items
    books.deposit(500)


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"ledger_account_id": "00000000-0000-7000-8000-000000000000"}, "ledger_account_id"),
        ({"ledger_account_id": "x"}, "ledger_account_id"),
        ({"alert_condition": None}, "alert_condition"),
        ({"operator": "below"}, "alert_condition.operator"),
        ({"field": "available_amount"}, "alert_condition.field"),
        ({"value": 1.5}, "alert_condition.value"),
        ({"value": 10**60}, "alert_condition.value"),
    ],
)
def test_malformed_monitors(
    access: Access, books: Books, changes: dict[str, Any], parameter: str
) -> None:
    condition = {"field": "posted_balance_amount", "operator": "equals", "value": 1}
    body: dict[str, Any] = {"ledger_account_id": books.alice, "alert_condition": condition}
    for name, value in changes.items():
        (body if name in body else condition)[name] = value
    with access.http() as http:
        answer = http.post("/api/ledger_account_balance_monitors", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]["parameter"] == parameter


# --- events ------------------------------------------------------------------------------------


def happened(found: Any) -> list[tuple[str, str]]:
    """What and to which entity, the oldest first."""
    return [(event.event_name, event.entity_id) for event in reversed(list(found))]


def test_monitors_make_an_event_of_each_transition(books: Books) -> None:
    events = books.client.events
    low = monitor(books, "available_balance_amount", "less_than", 100)
    books.deposit(500)
    pending = books.write(debit(books.alice, 401), credit(books.cash, 401), status="pending")
    books.client.ledger_transactions.update(pending.id, metadata={"no": "transition"})
    books.client.ledger_account_balance_monitors.update(low.id, description="d")
    books.client.ledger_transactions.update(pending.id, status="archived")
    found = list(events.list(entity_id=low.id))
    assert [event.event_name for event in reversed(found)] == [
        "triggered",
        "resolved",
        "triggered",
        "resolved",
    ]
    assert {event.resource for event in found} == {"ledger_account_balance_monitor"}
    states: list[Any] = [event.data["current_ledger_account_balance_state"] for event in found]
    available = [state["balances"]["available_balance"]["amount"] for state in states]
    assert (available, [state["triggered"] for state in states]) == (
        [500, 99, 500, 0],
        [False, True, False, True],
    )
    for event in found:
        assert events.retrieve(event.id) == event
    triggered = events.list(resource="ledger_account_balance_monitor", event_name="triggered")
    assert [event.id for event in triggered] == [found[1].id, found[3].id]


def test_transactions_make_events(books: Books) -> None:
    events = books.client.events
    posted = books.deposit(5, external_id="e")
    pending = books.write(debit(books.alice, 1), credit(books.cash, 1), status="pending")
    books.client.ledger_transactions.update(pending.id, description="not an event")
    books.client.ledger_transactions.update(pending.id, status="posted")
    archived = books.write(debit(books.alice, 1), credit(books.cash, 1), status="pending")
    books.client.ledger_transactions.update(archived.id, status="archived")
    books.client.ledger_transactions.update(archived.id, metadata={"not": "an event"})
    assert happened(events.list(resource="ledger_transaction")) == [
        ("created", posted.id),
        ("posted", posted.id),
        ("created", pending.id),
        ("posted", pending.id),
        ("created", archived.id),
        ("archived", archived.id),
    ]
    for transaction in (posted, pending, archived):
        of_one = list(events.list(entity_id=transaction.id))
        assert {event.entity_id for event in of_one} == {transaction.id}
        assert len(of_one) == 2
    last = next(iter(events.list(entity_id=pending.id)))
    data: Any = last.data
    assert (data["status"], data["description"]) == ("posted", "not an event")
    assert [entry["status"] for entry in data["ledger_entries"]] == ["posted", "posted"]
    assert events.list(event_name="created", entity_id=pending.id).items[0].event_name == "created"


def test_settlements_make_events(books: Books) -> None:
    settlements, events = books.client.ledger_account_settlements, books.client.events
    between: Any = {
        "settled_ledger_account_id": books.alice,
        "contra_ledger_account_id": books.cash,
    }

    def names(id: str) -> list[str]:
        return [event.event_name for event in events.list(entity_id=id)]

    books.deposit(5)
    first = settlements.create(**between)
    settlements.update(first.id, description="d")
    assert names(first.id) == ["finish_processing"]
    settlements.update(first.id, status="archived")
    settlements.update(first.id, status="archived")
    settlements.update(first.id, status="archived", description="not an event")
    assert names(first.id) == ["finish_archiving", "finish_processing"]
    second = settlements.create(**between)
    settlements.update(second.id, status="posted")
    settlements.update(second.id, status="posted", description="not an event")
    assert names(second.id) == ["posted", "finish_processing"]
    data: Any = next(iter(events.list(entity_id=second.id))).data
    assert (data["id"], data["status"], data["amount"]) == (second.id, "posted", 5)
    books.deposit(7)
    third = settlements.create(**between, status="posted")
    assert names(third.id) == ["posted", "finish_processing"]
    drafted = settlements.create(**between, status="drafting")
    assert names(drafted.id) == []
    for description in "de":
        settlements.update(drafted.id, status="archived", description=description)
    assert names(drafted.id) == ["finish_archiving"]
    books.deposit(9)
    bare = settlements.create(**between, skip_settlement_ledger_transaction=True)
    for description in "de":
        settlements.update(bare.id, status="posted", description=description)
    assert names(bare.id) == ["posted", "finish_processing"]
    assert settlements.retrieve(bare.id).description == "e"


def test_events_are_filtered_and_paged(access: Access, books: Books) -> None:
    events = books.client.events
    for amount in range(1, 8):
        books.deposit(amount)
    every = list(events.list(per_page=4))
    assert len(every) == len({event.id for event in every}) == 14
    assert happened(every) == happened(events.list(per_page=100))
    assert [event.event_time for event in every] == sorted(
        (event.event_time for event in every), reverse=True
    )
    middle = every[6].event_time.isoformat()
    early = list(events.list(event_time_end=middle, per_page=3))
    late = list(events.list(event_time_start=middle, per_page=3))
    both = list(events.list(event_time_start=middle, event_time_end=middle))
    assert (early, late, both) == (every[6:], every[:8], every[6:8])
    created = list(events.list(event_name="created", event_time_start=middle, per_page=1))
    assert created == every[1:8:2]
    assert not events.list(event_name="unheard of").items
    assert not events.list(event_time_start="2100-01-01T00:00:00Z").items
    assert not events.list(entity_id=books.cash).items
    with access.http() as http:
        for parameters in ({"entity_id": "x"}, {"event_time_start": "x"}, {"per_page": "0"}):
            answer = http.get("/api/events", params=parameters)
            assert answer.status_code == 422, answer.text
            assert answer.json()["errors"]["parameter"] in parameters
    # Nobody's, another kind of id, and a place where nothing happened.
    for id in (books.cash, "x", every[0].id[:-1] + ("0" if every[0].id[-1] != "0" else "1")):
        with pytest.raises(NotFoundError):
            events.retrieve(id)
