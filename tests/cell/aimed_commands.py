"""Random commands that are mostly well aimed, for tests that need many of them.

Balanced entries of known accounts, locks close to what will be, versions close to what is; and
rarely something wrong: another tenant's id, an unbalanced entry, an unknown account.
"""

from random import Random
from typing import Any

from cell_writing import CREDIT, DEBIT
from msgspec import UNSET
from naive_ledger import Entry, NaiveLedger

from cell.ledger import commands
from cell.ledger.model import Direction, Status
from cell.timestamps import DAY_US

UNKNOWN_ID = "00000000-0000-7000-8000-00000000ffff"
AMOUNT_MAX = 10**36 - 1
EXTERNAL_IDS = ("", "x", "y", "X")
TIMES_US = (-1, 0, 1, DAY_US - 1, DAY_US, 2 * DAY_US + 5, 400 * DAY_US)
"""Of effect: some of one day, some of others, in whatever order they are drawn."""
UNITS = (("USD", 2), ("USD", 3), ("JPY", 0))


class Aim:
    """Draws the next command of a tenant from what is there, with a random source of its own."""

    def __init__(self, random: Random, naive: NaiveLedger, other: NaiveLedger) -> None:
        self.random = random
        self.naive = naive
        self.other = other

    def command(self) -> Any:
        kinds = (
            self.create_transaction,
            self.update_transaction,
            self.change_status,
            self.post_partially,
            self.reverse,
            self.other_one,
        )
        return self.random.choices(kinds, (8, 8, 2, 3, 3, 6))[0]()

    def other_one(self) -> Any:
        kinds = (self.ledger, self.create_account, self.account, self.entry, self.api_key)
        return self.random.choices(kinds, (2, 2, 6, 3, 1))[0]()

    def rarely(self) -> bool:
        return self.random.random() < 0.07

    def either(self, *values: Any) -> Any:
        return self.random.choice(values)

    def perhaps(self, value: Any) -> Any:
        return self.either(UNSET, UNSET, value)

    def metadata(self) -> dict[str, str]:
        return {key: self.either("1", "2") for key in "abc" if self.random.random() < 0.2}

    def patch(self) -> dict[str, str | None]:
        return {key: self.either("1", "2", "", None) for key in "abc" if self.random.random() < 0.2}

    def external_id(self) -> str | None:
        return self.either(None, None, *EXTERNAL_IDS)

    def status(self) -> Status:
        return self.either(Status.PENDING, Status.PENDING, Status.POSTED, Status.ARCHIVED)

    def amount(self) -> int:
        few = self.random.randrange(10)
        return self.either(few, few, self.random.randrange(AMOUNT_MAX), AMOUNT_MAX)

    def id(self, kind: str) -> str:
        """Mostly one of the tenant's own, the later the likelier; else another's, or nobody's."""
        own = list(getattr(self.naive, kind))
        if self.rarely() or not own:
            return self.either(*getattr(self.other, kind), UNKNOWN_ID)
        return own[max(self.random.randrange(len(own)), self.random.randrange(len(own)))]

    def transaction_id(self, status: Status = Status.PENDING) -> str:
        """Mostly one of the status."""
        transactions = self.naive.transactions
        aimed_at = [id for id, each in transactions.items() if each.status is status]
        if not aimed_at or self.random.random() < 0.2:
            return self.id("transactions")
        return self.either(*aimed_at)

    def ledger(self) -> Any:
        changed = commands.UpdateLedger(
            id=self.id("ledgers"),
            name=self.perhaps(self.either("n", "m")),
            description=self.perhaps(self.either(None, "d", "e")),
            metadata=self.patch(),
        )
        if self.rarely() and self.rarely():
            return commands.DeleteLedger(id=self.id("ledgers"))
        return self.either(commands.CreateLedger(name="n", metadata=self.metadata()), changed)

    def create_account(self) -> commands.CreateLedgerAccount:
        unit = self.either(UNITS[0], *UNITS)
        return commands.CreateLedgerAccount(
            ledger_id=self.id("ledgers"),
            name="n",
            normal_balance=self.either(DEBIT, CREDIT),
            currency=unit[0],
            currency_exponent=unit[1],
            external_id=self.external_id(),
            metadata=self.metadata(),
        )

    def account(self) -> Any:
        id = self.id("accounts")
        if self.rarely():
            return commands.DeleteLedgerAccount(id=id)
        return commands.UpdateLedgerAccount(
            id=id,
            name=self.perhaps(self.either("n", "m")),
            description=self.perhaps(self.either(None, "d", "e")),
            external_id=self.perhaps(self.external_id()),
            metadata=self.patch(),
        )

    def entry(self) -> Any:
        return commands.UpdateLedgerEntry(id=self.id("entries"), metadata=self.patch())

    def api_key(self) -> Any:
        id = f"{self.naive.tenant_id[:-4]}99{self.naive.tenant_id[-2:]}"
        created = commands.CreateApiKey(id=id, secret_sha256=self.either("a", "a", "b") * 64)
        return self.either(commands.RevokeApiKey(id=id), created, created)

    def create_transaction(self) -> commands.CreateLedgerTransaction:
        return commands.CreateLedgerTransaction(
            entries=self.entries(),
            status=self.status(),
            description=self.either(None, "d", "e"),
            effective_at_us=self.either(None, *TIMES_US),
            external_id=self.external_id(),
            metadata=self.metadata(),
            archives_on_broken_lock=self.either(True, False),
        )

    def update_transaction(self) -> commands.UpdateLedgerTransaction:
        return commands.UpdateLedgerTransaction(
            id=self.transaction_id(),
            status=self.perhaps(self.status()),
            description=self.perhaps(self.either(None, "d", "e")),
            effective_at_us=self.perhaps(self.either(*TIMES_US)),
            external_id=self.perhaps(self.external_id()),
            ledgerable_type=self.perhaps(self.either(None, "payment_order")),
            entries=self.either(UNSET, self.entries()),
            metadata=self.patch(),
        )

    def change_status(self) -> commands.UpdateLedgerTransaction:
        id = self.transaction_id()
        return commands.UpdateLedgerTransaction(id=id, status=self.status())

    def post_partially(self) -> commands.PartiallyPostLedgerTransaction:
        id = self.transaction_id()
        pending = self.naive.transactions.get(id)
        return commands.PartiallyPostLedgerTransaction(
            id=id,
            entries=() if pending is None else self.parts(pending.entries),
            description=self.either(None, "d", "e"),
            effective_at_us=self.either(None, *TIMES_US),
            metadata=self.metadata(),
        )

    def parts(self, pending: list[Entry]) -> tuple[commands.EntryDraft, ...]:
        """Nothing of any entry, but for an equal part of two that balance; rarely the whole."""
        amounts = [0] * len(pending)
        pairs = [
            (one, two)
            for one, debited in enumerate(pending)
            for two, credited in enumerate(pending)
            if debited.direction is DEBIT
            and credited.direction is CREDIT
            and self.unit(debited.account) == self.unit(credited.account)
        ]
        if pairs:
            one, two = self.either(*pairs)
            least = min(pending[one].amount, pending[two].amount)
            amounts[one] = amounts[two] = self.either(least // 2, max(0, least - 1))
            if self.rarely():
                amounts[self.either(one, two)] = least
        drafts = [
            self.draft(entry.account, entry.direction, amount)
            for entry, amount in zip(pending, amounts, strict=True)
        ]
        self.random.shuffle(drafts)
        if self.rarely():
            drafts.pop()
        return tuple(drafts)

    def reverse(self) -> commands.ReverseLedgerTransaction:
        return commands.ReverseLedgerTransaction(
            id=self.transaction_id(Status.POSTED),
            status=self.either(*Status, Status.PENDING),
            description=self.either(None, "d", "e"),
            effective_at_us=self.either(None, None, *TIMES_US),
            external_id=self.external_id(),
            metadata=self.metadata(),
        )

    def entries(self) -> tuple[commands.EntryDraft, ...]:
        """One or two balanced groups, each of one currency; rarely with something wrong."""
        naive = self.naive
        live = [id for id, each in naive.accounts.items() if each.discarded_at is None]
        ledger = naive.ledger_of(self.either(*live)) if live else ""
        pool = list(naive.accounts) if self.rarely() else live
        accounts = [id for id in pool if naive.ledger_of(id) == ledger]
        if self.rarely() or not accounts:
            accounts = [*naive.accounts, *self.other.accounts, UNKNOWN_ID]
        drafts = []
        for _ in range(self.either(1, 1, 2)):
            first = self.either(*accounts)
            same = [id for id in accounts if self.unit(id) == self.unit(first)]
            one, two = self.amount(), self.random.randrange(4)
            total = min(one + two, AMOUNT_MAX)
            direction, opposite = self.either((DEBIT, CREDIT), (CREDIT, DEBIT))
            drafts.append(self.draft(first, direction, total))
            drafts.append(self.draft(self.either(*same), opposite, one))
            if total > one or self.rarely():
                drafts.append(self.draft(self.either(*same), opposite, total - one))
        if self.rarely():
            drafts.pop(self.random.randrange(len(drafts)))
        return tuple(drafts)

    def unit(self, account: str) -> Any:
        return self.naive.unit(account) if account in self.naive.accounts else None

    def draft(self, account: str, direction: Direction, amount: int) -> commands.EntryDraft:
        fields: dict[str, Any] = {}
        known = account in self.naive.accounts
        if self.random.random() < 0.15:
            version = self.naive.version(account) if known else 0
            fields["lock_version"] = version + self.either(0, 0, 0, 0, 1, -1)
        if self.random.random() < 0.2 and known:
            fields[self.either("pending_lock", "posted_lock", "available_lock")] = self.lock(
                account, amount
            )
        return commands.EntryDraft(
            ledger_account_id=account,
            direction=direction,
            amount=amount,
            effective_at_us=self.either(None, None, *TIMES_US),
            shows_resulting_balances=self.either(True, False),
            metadata=self.metadata(),
            **fields,
        )

    def lock(self, account: str, amount: int) -> commands.BalanceLock:
        """On what the balance is or might become, or just beside it."""
        pd, pc, od, oc = self.naive.sums(account)
        about = self.either(oc - od, od - oc, oc + pc - od - pd)
        bound = about + self.either(-1, 0, 1) * amount + self.either(-1, 0, 1)
        operators = self.random.sample(("gt", "gte", "lt", "lte", "eq"), self.either(0, 1, 1, 1, 2))
        return commands.BalanceLock(**dict.fromkeys(operators, bound))
