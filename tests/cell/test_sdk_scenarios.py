"""Method: every method that the official SDK's Ledgers resources have, called once and more in one
life of a ledger, in strict mode. Which methods there are is asked of the SDK itself, so that one
that is forgotten here, or new in a later SDK, is named. A call counts once it has returned.

Lists are not checked strictly by the SDK: each listed object is retrieved by its id, too, and
versions, which no call retrieves, are checked against their type here.
"""

import inspect
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytest
from cell_process import DEADLINE_S, Access
from modern_treasury import AsyncModernTreasury, ModernTreasury
from modern_treasury._models import validate_type
from modern_treasury.types.ledger_transactions import LedgerTransactionVersion
from test_scenarios import credit, debit

BESIDE_THE_LEDGERS = ("bulk_requests", "bulk_results", "events")
"""Resources that the ledgers need, of names that do not begin as theirs do."""
METHODS = 50


class Recorder:
    """The client, or a part of it, which notes the dotted name of each method that returned."""

    def __init__(self, part: Any, called: set[str], name: str = "") -> None:
        self._part, self._called, self._name = part, called, name

    def __getattr__(self, name: str) -> Any:
        value, path = getattr(self._part, name), f"{self._name}{name}"
        if not inspect.isroutine(value):
            return Recorder(value, self._called, f"{path}.")

        def call(*given: Any, **named: Any) -> Any:
            answer = value(*given, **named)
            self._called.add(path)
            return answer

        return call


def methods_of(client: type) -> set[str]:
    """Dotted names of what the client has for ledgers."""
    parts = [
        name
        for name, value in vars(client).items()
        if isinstance(value, cached_property)
        and (name.startswith("ledger") or name in BESIDE_THE_LEDGERS)
    ]
    assert "ping" in vars(client)
    instance = client(organization_id="o", api_key="k", base_url="http://127.0.0.1:9")
    return {"ping", *(each for name in parts for each in methods_in(getattr(instance, name), name))}


def methods_in(resource: Any, name: str) -> Iterator[str]:
    for inner, value in vars(type(resource)).items():
        if inspect.isfunction(value) and not inner.startswith("_"):
            yield f"{name}.{inner}"
        elif isinstance(value, cached_property) and not inner.startswith("with_"):
            yield from methods_in(getattr(resource, inner), f"{name}.{inner}")


@pytest.mark.parametrize("client", [ModernTreasury, AsyncModernTreasury])
def test_the_sdk_has_as_many_methods_as_its_reference(client: type) -> None:
    found = methods_of(client)
    assert len(found) == METHODS
    assert found == methods_of(ModernTreasury)


def test_every_method_of_the_sdk_succeeds(access: Access) -> None:
    called: set[str] = set()
    with access.sdk() as sdk:
        client: Any = Recorder(sdk, called)
        assert client.ping().ping == "pong"
        ledger, cash, alice = open_books(client)
        categorize(client, ledger, alice)
        write(client, cash, alice)
        watch(client, alice)
        settle(client, cash, alice)
        send_in_bulk(client, ledger, cash, alice)
        look_at_events(client)
        close_books(client, ledger)
    assert called == methods_of(ModernTreasury)


def see(resource: Any, listed: Any) -> list[Any]:
    """All that is listed, each strictly retrieved and found the same."""
    found = list(listed)
    assert found
    assert [resource.retrieve(each.id) for each in found] == found
    return found


def open_books(client: Any) -> tuple[str, str, str]:
    made = client.ledgers.create(name="L", description="d", metadata={"k": "v"})
    changed = client.ledgers.update(made.id, name="books", description=None, metadata={"k": ""})
    assert (changed.id, changed.name, changed.description) == (made.id, "books", None)
    assert changed.metadata == {}
    assert changed.updated_at >= made.updated_at
    assert see(client.ledgers, client.ledgers.list(id=[made.id])) == [changed]

    accounts = client.ledger_accounts
    cash, alice = (
        accounts.create(name=name, ledger_id=made.id, normal_balance=side, currency="USD")
        for name, side in (("CASH", "debit"), ("ALICE", "credit"))
    )
    renamed = accounts.update(
        alice.id, name="Alice", description="d", external_id="a", metadata={"k": "v"}
    )
    assert (renamed.name, renamed.description, renamed.external_id) == ("Alice", "d", "a")
    assert (renamed.metadata, renamed.lock_version) == ({"k": "v"}, alice.lock_version)
    assert accounts.retrieve("a") == renamed
    assert see(accounts, accounts.list(ledger_id=made.id)) == [renamed, cash]
    return made.id, cash.id, alice.id


def categorize(client: Any, ledger: str, alice: str) -> None:
    categories = client.ledger_account_categories
    top, low = (
        categories.create(name=name, ledger_id=ledger, normal_balance="credit", currency="USD")
        for name in ("top", "low")
    )
    assert categories.add_ledger_account(alice, id=low.id) is None
    assert categories.add_nested_category(low.id, id=top.id) is None
    assert categories.update(top.id, description="all").description == "all"
    assert len(see(categories, categories.list(ledger_account_id=alice))) == 2
    assert categories.remove_nested_category(low.id, id=top.id) is None
    assert categories.remove_ledger_account(alice, id=low.id) is None
    for each in (top, low):
        assert categories.delete(each.id).discarded_at is not None


def write(client: Any, cash: str, alice: str) -> None:
    transactions, entries = client.ledger_transactions, client.ledger_entries

    def new(amount: int, status: str) -> Any:
        both = [debit(cash, amount), credit(alice, amount)]
        return transactions.create(ledger_entries=both, status=status)

    posted, pending = new(1000, "posted"), new(500, "pending")
    part = transactions.create_partial_post(
        pending.id, posted_ledger_entries=[debit(cash, 200), credit(alice, 200)]
    )
    rest = transactions.update(pending.id, status="posted", metadata={"k": "v"})
    assert (part.status, rest.status, rest.metadata) == ("posted", "posted", {"k": "v"})
    reversal = transactions.create_reversal(posted.id)
    assert reversal.reverses_ledger_transaction_id == posted.id
    listed = see(transactions, transactions.list(ledger_account_id=alice))
    assert {each.id for each in listed} == {posted.id, pending.id, part.id, reversal.id}

    versions = list(transactions.versions.list(ledger_transaction_id=pending.id))
    assert [each.version for each in versions] == [2, 1, 0]
    for version in versions:
        validate_type(type_=LedgerTransactionVersion, value=version.to_dict(mode="json"))

    first = see(entries, entries.list(ledger_account_id=alice))[0]
    assert entries.update(first.id, metadata={"k": "v"}).metadata == {"k": "v"}


def watch(client: Any, alice: str) -> None:
    monitors = client.ledger_account_balance_monitors
    condition = {"field": "posted_balance_amount", "operator": "greater_than", "value": 0}
    made = monitors.create(ledger_account_id=alice, alert_condition=condition)
    assert made.current_ledger_account_balance_state.triggered
    assert monitors.update(made.id, description="d").description == "d"
    assert len(see(monitors, monitors.list(ledger_account_id=alice))) == 1
    assert monitors.delete(made.id).discarded_at is not None

    statements = client.ledger_account_statements
    statement = statements.create(
        ledger_account_id=alice,
        effective_at_lower_bound="2024-01-01T00:00:00Z",
        effective_at_upper_bound="2100-01-01T00:00:00Z",
    )
    assert statement.ending_balance.posted_balance.amount == 500
    # Of two types of the same fields.
    assert statements.retrieve(statement.id).to_dict() == statement.to_dict()


def settle(client: Any, cash: str, alice: str) -> None:
    settlements = client.ledger_account_settlements
    entry = next(
        each
        for each in client.ledger_entries.list(ledger_account_id=alice, status="posted")
        if each.direction == "credit"
    )
    draft = settlements.create(
        settled_ledger_account_id=alice, contra_ledger_account_id=cash, status="drafting"
    )
    for change in (settlements.account_entries.update, settlements.account_entries.delete) * 2:
        assert change(draft.id, ledger_entry_ids=[entry.id]) is None
    settlements.account_entries.update(draft.id, ledger_entry_ids=[entry.id])
    posted = settlements.update(draft.id, status="posted")
    assert (posted.status, posted.amount) == ("posted", entry.amount)
    assert see(settlements, settlements.list(settled_ledger_account_id=alice)) == [posted]


def send_in_bulk(client: Any, ledger: str, cash: str, alice: str) -> None:
    requests, results = client.bulk_requests, client.bulk_results
    account = client.ledger_accounts.create(
        name="B", ledger_id=ledger, normal_balance="credit", currency="USD"
    )

    def done(**given: Any) -> Any:
        made = requests.create(**given)
        deadline_s = time.monotonic() + DEADLINE_S
        while (seen := requests.retrieve(made.id)).status != "completed":
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        return seen

    # Of rows with nested values, the SDK's own type allows no strict look at the result.
    nested = {"status": "posted", "ledger_entries": [debit(cash, 1), credit(alice, 1)]}
    created = done(
        action_type="create", resource_type="ledger_transaction", resources=[nested, nested]
    )
    deleted = done(
        action_type="delete", resource_type="ledger_account", resources=[{"id": account.id}]
    )
    assert see(requests, requests.list()) == [deleted, created]
    assert len(list(results.list(request_id=created.id, status="successful"))) == 2
    assert see(results, results.list(request_id=deleted.id))[0].entity.id == account.id


def look_at_events(client: Any) -> None:
    seen = see(client.events, client.events.list(per_page=100))
    assert {each.resource for each in seen} == {
        "ledger_transaction",
        "ledger_account_balance_monitor",
        "ledger_account_settlement",
    }


def close_books(client: Any, ledger: str) -> None:
    account = client.ledger_accounts.list(ledger_id=ledger).items[0]
    assert client.ledger_accounts.delete(account.id).discarded_at is not None
    assert client.ledgers.delete(ledger).discarded_at is not None
