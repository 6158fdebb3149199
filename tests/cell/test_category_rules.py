"""The rules of categories beside a naive graph, over random sequences of what is put in and out.

Method: Hypothesis draws steps of two small numbers each, which stand for two of the things there
are: categories of two ledgers, two currencies and two tenants, and accounts of the same kinds. The
naive graph is two sets of pairs, judged anew at each step by walking all chains there would be.
After each step: the same refusal, or the same accounts in every category.
"""

from collections import Counter
from typing import Any

import pytest
from complete_state import CompleteWorkingSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cell.errors import ApiError, NotFound, Unprocessable
from cell.ids import IdSource
from cell.ledger import commands
from cell.ledger.model import (
    CategoryMember,
    CategoryNesting,
    Direction,
    LedgerAccountCategory,
    Stamp,
    TenantId,
)
from cell.ledger.rules import apply
from cell.state import TenantView

TENANT, OTHER = (TenantId(f"00000000-0000-4000-8000-00000000000{n}") for n in (1, 2))
UNKNOWN = "00000000-0000-7000-8000-00000000ffff"
REACHED: Counter[str] = Counter()

Refused = type[ApiError] | None


class NaiveGraph:
    def __init__(self) -> None:
        self.units: dict[str, tuple[str, str]] = {}
        """Ledger and currency of what is live, of this tenant."""
        self.categories: set[str] = set()
        self.under: set[tuple[str, str]] = set()
        self.holds: set[tuple[str, str]] = set()

    def inside(self, category: str) -> set[str]:
        """All categories below, itself among them."""
        lower = [sub for top, sub in self.under if top == category and sub in self.units]
        return {category}.union(*(self.inside(sub) for sub in lower))

    def chain(self, category: str) -> int:
        lower = [sub for top, sub in self.under if top == category and sub in self.units]
        return 1 + max((self.chain(sub) for sub in lower), default=0)

    def accounts(self, category: str) -> set[str]:
        inside = self.inside(category)
        return {account for holder, account in self.holds if holder in inside}

    def execute(self, command: Any) -> Refused:
        return getattr(self, f"_{command.__struct_config__.tag}")(command)  # type: ignore[no-any-return]

    def fits(self, category: str, thing: str) -> Refused:
        if category not in self.units or thing not in self.units:
            return NotFound
        return None if self.units[category] == self.units[thing] else Unprocessable

    def _add_ledger_account_to_category(self, command: Any) -> Refused:
        refusal = self.fits(command.category_id, command.ledger_account_id)
        if refusal is None:
            self.holds.add((command.category_id, command.ledger_account_id))
        return refusal

    def _remove_ledger_account_from_category(self, command: Any) -> Refused:
        pair = (command.category_id, command.ledger_account_id)
        if pair not in self.holds or command.category_id not in self.units:
            return NotFound
        self.holds.remove(pair)
        return None

    def _nest_ledger_account_category(self, command: Any) -> Refused:
        top, sub = command.category_id, command.sub_category_id
        refusal = self.fits(top, sub)
        if refusal is not None or (top, sub) in self.under:
            return refusal
        if top in self.inside(sub):
            return Unprocessable
        return self._keep_if_short(top, sub)

    def _keep_if_short(self, top: str, sub: str) -> Refused:
        self.under.add((top, sub))
        if max(self.chain(each) for each in self.categories if each in self.units) <= 5:
            return None
        self.under.remove((top, sub))
        return Unprocessable

    def _unnest_ledger_account_category(self, command: Any) -> Refused:
        pair = (command.category_id, command.sub_category_id)
        if pair not in self.under or not set(pair) <= self.units.keys():
            return NotFound
        self.under.remove(pair)
        return None

    def _delete_ledger_account_category(self, command: Any) -> Refused:
        if command.id not in self.categories:
            return NotFound
        self.units.pop(command.id, None)
        return None

    def _delete_ledger_account(self, command: Any) -> Refused:
        self.holds = {(top, account) for top, account in self.holds if account != command.id}
        self.units.pop(command.id, None)
        return None


class Books:
    """The rules over a working set in memory, beside the naive graph."""

    def __init__(self) -> None:
        self.working_set = CompleteWorkingSet()
        self.ids = IdSource(random_bytes=bytes)
        self.seq = 0
        self.naive = NaiveGraph()
        self.categories: list[str] = []
        self.accounts: list[str] = []
        first, second = (self.ledger(TENANT) for _ in range(2))
        units = [(first, "USD")] * 6 + [(first, "EUR"), (second, "USD")]
        for unit in units:
            self.categories.append(self.make(TENANT, commands.CreateLedgerAccountCategory, unit))
            self.accounts.append(self.make(TENANT, commands.CreateLedgerAccount, unit))
        unit = (self.ledger(OTHER), "USD")
        self.categories[-1:] += [
            self.make(OTHER, commands.CreateLedgerAccountCategory, unit),
            UNKNOWN,
        ]
        self.accounts[-1:] += [self.make(OTHER, commands.CreateLedgerAccount, unit), UNKNOWN]

    def ledger(self, tenant_id: TenantId) -> str:
        return str(self.do(tenant_id, commands.CreateLedger(name="L"))[0].id)

    def make(self, tenant_id: TenantId, kind: Any, unit: tuple[str, str]) -> str:
        command = kind(
            ledger_id=unit[0],
            name="N",
            normal_balance=Direction.CREDIT,
            currency=unit[1],
            currency_exponent=2,
        )
        id = str(self.do(tenant_id, command)[0].id)
        if tenant_id == TENANT:
            self.naive.units[id] = unit
            if kind is commands.CreateLedgerAccountCategory:
                self.naive.categories.add(id)
        return id

    def do(self, tenant_id: TenantId, command: Any) -> list[Any]:
        stamp = Stamp(self.seq + 1, self.seq + 1, self.ids.draw(self.seq + 1))
        effects = apply(command, TenantView(tenant_id, self.working_set), stamp)
        rows: list[Any] = [*effects.inserted, *effects.updated]
        assert all(row.tenant_id == tenant_id for row in rows)
        if rows[0].seq == stamp.seq:
            assert all(row.seq == stamp.seq for row in rows)
            self.seq += 1
            self.working_set.commit(effects)
        return rows

    def step(self, command: Any) -> None:
        expected = self.naive.execute(command)
        found: Refused = None
        try:
            self.do(TENANT, command)
        except ApiError as refusal:
            found = type(refusal)
        name = command.__struct_config__.tag
        REACHED[f"{name} {found.__name__ if found else 'done'}"] += 1
        assert found is expected, command
        for category in self.naive.categories & self.naive.units.keys():
            assert self.accounts_in(category) == self.naive.accounts(category)

    def accounts_in(self, category: str) -> set[str]:
        """By the rows."""
        rows: Any = self.working_set.rows

        def live(kind: Any) -> list[Any]:
            return [row for row in rows[kind].values() if row.discarded_at_us is None]

        categories = {row.id for row in live(LedgerAccountCategory)}
        inside: set[str] = set()
        ahead = {category}
        while ahead:
            inside |= ahead
            nestings = [row for row in live(CategoryNesting) if row.category_id in ahead]
            ahead = {row.sub_category_id for row in nestings} & categories - inside
        return {row.ledger_account_id for row in live(CategoryMember) if row.category_id in inside}


STEPS = st.lists(
    st.tuples(st.sampled_from("nnnnnuaardD"), st.integers(0, 8), st.integers(0, 8)),
    min_size=8,
    max_size=40,
)


def command_of(books: Books, kind: str, first: int, second: int) -> Any:
    category, other = books.categories[first], books.categories[second]
    account = books.accounts[second]
    return {
        "n": lambda: commands.NestLedgerAccountCategory(
            category_id=category, sub_category_id=other
        ),
        "u": lambda: commands.UnnestLedgerAccountCategory(
            category_id=category, sub_category_id=other
        ),
        "a": lambda: commands.AddLedgerAccountToCategory(
            category_id=category, ledger_account_id=account
        ),
        "r": lambda: commands.RemoveLedgerAccountFromCategory(
            category_id=category, ledger_account_id=account
        ),
        "d": lambda: commands.DeleteLedgerAccountCategory(id=category),
        "D": lambda: commands.DeleteLedgerAccount(id=books.accounts[second % 6]),
    }[kind]()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(STEPS)
def test_rules_agree_with_a_naive_graph(steps: list[tuple[str, int, int]]) -> None:
    books = Books()
    done = {"u": (0, 0), "r": (0, 0)}
    for kind, first, second in steps:
        if kind in done and second % 2:
            # Taking out at random what was never put in is refused nearly always.
            first, second = done[kind]
        books.step(command_of(books, kind, first, second))
        if kind in "na":
            done["u" if kind == "n" else "r"] = (first, second)


@pytest.mark.parametrize(
    ("order", "longest"), [((0, 1, 2, 3, 4), 5), ((4, 3, 2, 1, 0), 5), ((0, 3, 1, 4, 2), 3)]
)
def test_a_chain_of_six_is_refused_wherever_it_is_joined(
    order: tuple[int, ...], longest: int
) -> None:
    books = Books()
    for number in order:
        books.step(command_of(books, "n", number, number + 1))
    assert max(map(books.naive.chain, books.categories[:6])) == longest


def test_every_kind_of_outcome_was_met() -> None:
    for kind in ("nest_ledger_account_category", "add_ledger_account_to_category"):
        assert all(REACHED[f"{kind} {how}"] for how in ("done", "NotFound", "Unprocessable"))
    for kind in ("unnest_ledger_account_category", "remove_ledger_account_from_category"):
        assert all(REACHED[f"{kind} {how}"] for how in ("done", "NotFound"))
