"""Method: acceptance scenario A22 and what belongs to it, driven by the official SDK with strict
response validation; like `test_scenarios.py` it asks nothing but the fixture `access`.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cell_process import Access
from modern_treasury import NotFoundError, UnprocessableEntityError
from test_scenarios import Books, at_once, credit, debit, new_books

UNKNOWN = "00000000-0000-7000-8000-00000000ffff"


class Graph:
    """Categories of a ledger, in dollars and credit-normal unless told otherwise."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.api = books.client.ledger_account_categories

    def category(self, name: str, **fields: Any) -> str:
        given = {"normal_balance": "credit", "currency": "USD", "ledger_id": self.books.ledger}
        return self.api.create(name=name, **{**given, **fields}).id

    def chain(self, length: int) -> list[str]:
        """Each under the one before it; by creation and by nesting in turn."""
        ids = [self.category("C0")]
        for number in range(1, length):
            if number % 2:
                ids.append(self.category(f"C{number}", ledger_account_category_ids=[ids[-1]]))
            else:
                ids.append(self.category(f"C{number}"))
                assert self.nest(ids[-2], ids[-1]) is None
        return ids

    def nest(self, category: str, sub_category: str) -> Any:
        return self.api.add_nested_category(sub_category, id=category)

    def unnest(self, category: str, sub_category: str) -> Any:
        return self.api.remove_nested_category(sub_category, id=category)

    def add(self, category: str, account: str) -> Any:
        return self.api.add_ledger_account(account, id=category)

    def remove(self, category: str, account: str) -> Any:
        return self.api.remove_ledger_account(account, id=category)

    def amounts(self, category: str) -> tuple[int, int, int]:
        """Posted, pending, available."""
        of = self.api.retrieve(category).balances
        return of.posted_balance.amount, of.pending_balance.amount, of.available_balance.amount

    def found(self, **filters: Any) -> set[str]:
        return {category.id for category in self.api.list(**filters)}


@pytest.fixture
def books(access: Access) -> Iterator[Books]:
    with access.sdk() as client:
        yield new_books(client)


@pytest.fixture
def graph(books: Books) -> Graph:
    return Graph(books)


def refused(parameter: str | None, request: Callable[..., Any], *given: Any, **named: Any) -> None:
    with pytest.raises(UnprocessableEntityError) as refusal:
        request(*given, **named)
    body: Any = refusal.value.body
    assert body["errors"].get("parameter") == parameter


def test_categories(graph: Graph) -> None:
    books, alice, bob = graph.books, graph.books.alice, graph.books.bob
    chain = graph.chain(5)
    c0, c1, c2, c3, c4 = chain
    assert graph.add(c4, alice) is None
    assert graph.add(c2, bob) is None
    books.deposit(1000)
    books.write(debit(books.cash, 50), credit(bob, 50))
    assert [graph.amounts(id)[0] for id in chain] == [1050, 1050, 1050, 1000, 1000]
    assert graph.found(ledger_account_id=alice) == set(chain)
    assert graph.found(ledger_account_id=bob) == {c0, c1, c2}
    assert graph.found(parent_ledger_account_category_id=c1) == {c2}

    refused("sub_category_id", graph.nest, c4, graph.category("C5"))
    refused(
        "ledger_account_category_ids", graph.category, "C5", ledger_account_category_ids=[c1, c4]
    )
    refused("sub_category_id", graph.nest, c4, c0)
    refused("sub_category_id", graph.nest, c0, c0)
    euros = books.client.ledger_accounts.create(
        name="E", ledger_id=books.ledger, normal_balance="credit", currency="EUR"
    )
    refused("ledger_account_id", graph.add, c0, euros.id)
    refused("sub_category_id", graph.nest, c0, graph.category("E", currency="EUR"))
    elsewhere = new_books(books.client)
    refused("ledger_account_id", graph.add, c0, elsewhere.alice)
    refused("sub_category_id", graph.nest, c0, Graph(elsewhere).category("L2"))

    # By a second route ALICE still counts once, and stays when either one is cut.
    graph.add(c0, alice)
    graph.add(c0, alice)
    graph.nest(c0, c3)
    graph.nest(c0, c3)
    assert graph.amounts(c0)[0] == 1050
    graph.remove(c0, alice)
    assert graph.unnest(c2, c3) is None
    assert [graph.amounts(id)[0] for id in chain] == [1050, 50, 50, 1000, 1000]
    for absent in (
        lambda: graph.remove(c0, alice),
        lambda: graph.unnest(c2, c3),
        lambda: graph.remove(c0, UNKNOWN),
        lambda: graph.nest(UNKNOWN, c0),
        lambda: graph.nest(c0, UNKNOWN),
    ):
        with pytest.raises(NotFoundError):
            absent()
    assert graph.remove(c2, bob) is None
    assert graph.amounts(c0)[0] == 1000
    assert books.balances(bob) == (50, 50, 50)


def test_balances_of_a_category_have_its_own_normal_side(graph: Graph) -> None:
    books = graph.books
    both = graph.category("both", normal_balance="debit")
    account = books.client.ledger_accounts.create(
        name="new",
        ledger_id=books.ledger,
        normal_balance="debit",
        currency="USD",
        ledger_account_category_ids=[both, both],
    )
    graph.add(both, books.alice)
    books.write(debit(account.id, 70), credit(books.alice, 30), credit(books.bob, 40))
    books.write(debit(books.alice, 5), credit(account.id, 5), status="pending")
    shown = graph.api.retrieve(both).balances
    assert (shown.posted_balance.debits, shown.posted_balance.credits) == (70, 30)
    assert (shown.pending_balance.debits, shown.pending_balance.credits) == (75, 35)
    # A debit-normal one: pending credits go out at once, pending debits do not come in yet.
    assert graph.amounts(both) == (40, 40, 35)
    assert shown.posted_balance.amount_string == "40"


def test_text_lists_and_deletion(graph: Graph) -> None:
    books, api = graph.books, graph.api
    top = graph.category("top", external_id="e", metadata={"k": "v"}, description="d")
    low = graph.category("low", ledger_account_category_ids=[top])
    refused("external_id", graph.category, "again", external_id="e")
    graph.add(low, books.alice)
    books.deposit(10)
    changed = api.update(top, name="TOP", metadata={"k": "", "l": "w"}, description=None)
    assert (changed.name, changed.description, changed.metadata) == ("TOP", None, {"l": "w"})
    assert changed.balances.posted_balance.amount == 10
    assert api.retrieve(top).metadata == {"l": "w"}

    assert graph.found(name="low") == {low}
    assert graph.found(extra_query={"name": ["low", "TOP"]}) == {low, top}
    assert graph.found(external_id="e") == {top}
    assert graph.found(id=[low, UNKNOWN]) == {low}
    assert graph.found(metadata={"l": "w"}) == {top}
    assert graph.found(ledger_id=books.ledger, currency="USD") == {low, top}
    assert graph.found(currency="EUR") == set()
    for kind in ("posted", "pending", "available"):
        name = f"{kind}_balance_amount"
        assert graph.found(extra_query={f"{name}[eq]": 10}) == {low, top}
        assert graph.found(extra_query={f"{name}[not_eq]": 10}) == set()

    in_top: dict[str, Any] = {"ledger_account_category_id": top}
    client = books.client
    assert [account.id for account in client.ledger_accounts.list(**in_top)] == [books.alice]
    assert len(list(client.ledger_transactions.list(**in_top))) == 1
    entries = list(client.ledger_entries.list(**in_top))
    assert [each.ledger_account_id for each in entries] == [books.alice]
    nowhere: dict[str, Any] = {"ledger_account_category_id": UNKNOWN}
    assert list(client.ledger_accounts.list(**nowhere)) == []

    gone = api.delete(low)
    assert gone.discarded_at is not None
    with pytest.raises(NotFoundError):
        api.retrieve(low)
    assert graph.amounts(top) == (0, 0, 0)
    assert graph.found(ledger_account_id=books.alice) == set()
    assert list(client.ledger_accounts.list(**in_top)) == []
    assert books.balances(books.alice) == (10, 10, 10)
    # What was under it is free to be put elsewhere, and its levels count no more.
    graph.add(top, books.alice)
    assert graph.amounts(top)[0] == 10
    client.ledger_accounts.delete(books.alice)
    assert graph.amounts(top)[0] == 0
    api.delete(top)
    assert graph.category("next", external_id="e")
    client.ledgers.delete(books.ledger)
    assert graph.found() == set()


def test_another_tenants_categories_are_unknown(graph: Graph, other_access: Access) -> None:
    mine = graph.category("mine")
    graph.add(mine, graph.books.alice)
    graph.books.deposit(10)
    with other_access.sdk() as client:
        other = Graph(new_books(client))
        theirs = other.category("theirs")
        for attempt in (
            lambda: other.api.retrieve(mine),
            lambda: other.api.update(mine, name="x"),
            lambda: other.api.delete(mine),
            lambda: other.add(mine, other.books.alice),
            lambda: other.add(theirs, graph.books.alice),
            lambda: other.remove(mine, graph.books.alice),
            lambda: other.nest(mine, theirs),
            lambda: other.nest(theirs, mine),
            lambda: other.unnest(mine, theirs),
            lambda: other.category("x", ledger_id=graph.books.ledger),
            lambda: other.category("x", ledger_account_category_ids=[mine]),
            lambda: client.ledger_accounts.create(
                name="x",
                ledger_id=other.books.ledger,
                normal_balance="credit",
                currency="USD",
                ledger_account_category_ids=[mine],
            ),
        ):
            with pytest.raises(NotFoundError):
                attempt()
        assert other.found() == {theirs}
        assert other.found(ledger_account_id=graph.books.alice) == set()
        assert other.found(parent_ledger_account_category_id=mine) == set()
        in_mine: dict[str, Any] = {"ledger_account_category_id": mine}
        assert list(client.ledger_accounts.list(**in_mine)) == []
        assert list(client.ledger_entries.list(**in_mine)) == []
        assert list(client.ledger_transactions.list(**in_mine)) == []
    assert graph.amounts(mine)[0] == 10


def test_members_put_in_at_once(graph: Graph) -> None:
    """Many commands in few batches, on top of one another: each account and nesting once."""
    books = graph.books
    top = graph.category("top")
    middles = [graph.category(f"M{n}", ledger_account_category_ids=[top]) for n in range(3)]

    def build(number: int) -> None:
        low = graph.category(f"L{number}", ledger_account_category_ids=[middles[number % 3]])
        graph.nest(middles[(number + 1) % 3], low)
        graph.add(low, books.alice)
        graph.add(top, books.alice)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(build, range(12)))
    books.deposit(3)
    assert graph.amounts(top) == (3, 3, 3)
    assert len(graph.found(ledger_account_id=books.alice)) == 16
    assert len(graph.found(parent_ledger_account_category_id=middles[0])) == 8


def test_client_without_a_body(graph: Graph, access: Access) -> None:
    """PUT and DELETE of a membership answer 200 without a body, as they come without one."""
    category = graph.category("C")
    path = f"/api/ledger_account_categories/{category}/ledger_accounts/{graph.books.alice}"
    with access.http(headers={"content-type": "application/json"}) as http:
        for method in ("PUT", "PUT", "DELETE"):
            answer = http.request(method, path)
            assert (answer.status_code, answer.content) == (200, b"")
        assert http.delete(path).status_code == 404
        assert http.put("/api/ledger_account_categories/x/ledger_accounts/y").status_code == 404


def test_locks_on_the_balances_of_categories(graph: Graph) -> None:
    books, client = graph.books, graph.books.client
    top = graph.category("top")
    low = graph.category("low", ledger_account_category_ids=[top])
    graph.add(low, books.alice)
    graph.add(top, books.bob)
    books.deposit(100)

    def lock(category: str, **maps: Any) -> dict[str, Any]:
        item = {"ledger_account_category_id": category, **maps}
        return {"extra_body": {"ledger_account_category_balance_locks": [item]}}

    at_least_80 = {"available_balance_amount": {"gte": 80}}
    out = (debit(books.alice, 15), credit(books.cash, 15))
    refusal = "ledger_account_category_balance_locks"
    count = len(books.transactions())
    refused(refusal, books.write, *out, **lock(low, posted_balance_amount={"eq": 100}))
    refused(refusal, books.write, *out, **lock(low, posted_balance_amount={"eq": 85, "gt": 85}))
    assert len(books.transactions()) == count
    assert books.account(books.alice).lock_version == 1
    spent = books.write(*out, status="pending", **lock(top, **at_least_80))
    refused(refusal, books.write, *out, **lock(top, **at_least_80))
    # From one of its accounts to another, the sum stays what it is.
    inside = (debit(books.alice, 30), credit(books.bob, 30))
    books.write(*inside, **lock(top, posted_balance_amount={"eq": 100}))
    refused(refusal, books.write, *inside, **lock(low, posted_balance_amount={"eq": 70}))
    # It holds before a transaction elsewhere, too, or it is refused.
    elsewhere = (debit(books.cash, 1), credit(books.cash, 1))
    refused(refusal, books.write, *elsewhere, **lock(top, posted_balance_amount={"lt": 100}))
    books.write(*elsewhere, **lock(top, posted_balance_amount={"lte": 100}))

    change = client.ledger_transactions.update
    larger = [debit(books.alice, 21), credit(books.cash, 21)]
    refused(refusal, change, spent.id, ledger_entries=larger, **lock(top, **at_least_80))
    smaller: Any = [debit(books.alice, 20), credit(books.cash, 20)]
    change(spent.id, ledger_entries=smaller, **lock(top, **at_least_80))
    refused(
        refusal,
        change,
        spent.id,
        metadata={"k": "v"},
        **lock(top, posted_balance_amount={"gt": 100}),
    )
    posted_at_most_80 = lock(top, posted_balance_amount={"lte": 80})
    assert change(spent.id, status="posted", **posted_at_most_80).status == "posted"
    assert graph.amounts(top) == (80, 80, 80)

    with pytest.raises(NotFoundError):
        books.write(*out, **lock(UNKNOWN, **at_least_80))
    foreign = Graph(new_books(client)).category("foreign")
    refused(refusal, books.write, *out, **lock(foreign, posted_balance_amount={"lt": 1}))
    books.write(debit(books.cash, 1), credit(books.bob, 1), **lock(top, posted_balance_amount={}))


def test_locked_categories_in_a_race(graph: Graph) -> None:
    """Two accounts share a limit; together, clients may not break it."""
    books = graph.books
    shared = graph.category("shared")
    for account in (books.alice, books.bob):
        graph.add(shared, account)
        books.write(debit(books.cash, 500), credit(account, 500))
    item = {"ledger_account_category_id": shared, "available_balance_amount": {"gte": 0}}

    accounts = itertools.cycle((books.alice, books.bob))

    def spend() -> Any:
        return books.write(
            debit(next(accounts), 100),
            credit(books.cash, 100),
            extra_body={"ledger_account_category_balance_locks": [item]},
        )

    assert sorted(at_once(14, spend)) == [201] * 10 + [422] * 4
    assert graph.amounts(shared) == (0, 0, 0)
