"""A ledger in the plainest words, to compare the rules with.

It keeps the transactions of one tenant with all entries they ever had and the list of writes, and
adds everything up anew whenever it is asked: no accumulator, no cache, no row. Refusals are found
by asking every question of the documented ladder in its order.
"""

from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from cell.errors import BalanceLockBroken, NotFound, Unprocessable
from cell.ids import derive_id
from cell.ledger import commands, model
from cell.ledger.model import Direction, Stamp, Status

Refusal = tuple[type[Exception], str | None]
FORBIDDEN: Refusal = (Unprocessable, "ledger_transaction")
BAD_ENTRIES: Refusal = (Unprocessable, "ledger_entries")
BAD_PART: Refusal = (Unprocessable, "posted_ledger_entries")
BROKEN_LOCK: Refusal = (BalanceLockBroken, "ledger_entries")
TAKEN: Refusal = (Unprocessable, "external_id")


@dataclass
class Entry:
    id: str
    transaction: str
    account: str
    direction: Direction
    amount: int
    status: Status
    effective_at: int
    metadata: dict[str, str]
    shows: bool
    made: int
    """Number of the write."""
    stamp: Stamp
    gone: int | None = None
    gone_at: int | None = None
    updated_at: int = 0
    seq: int = 0


@dataclass
class Transaction:
    id: str
    ledger: str
    fields: dict[str, Any]
    status: Status
    effective_at: int
    posted_at: int | None
    metadata: dict[str, str]
    created_at: int
    updated_at: int
    seq: int
    version: int = 0
    reverses: str | None = None
    reversed_by: str | None = None
    part_of: str | None = None
    archived_reason: str | None = None
    entries: list[Entry] = field(default_factory=list)
    """The live ones, in order."""


@dataclass
class Thing:
    """A ledger or an account."""

    id: str
    created: commands.Command
    fields: dict[str, Any]
    metadata: dict[str, str]
    created_at: int
    updated_at: int
    seq: int
    discarded_at: int | None = None


@dataclass
class Write:
    """One writing of a transaction's entries."""

    accounts: set[str]
    counts: bool
    seq: int


@dataclass
class NaiveLedger:
    """The ledgers of one tenant."""

    tenant_id: model.TenantId
    ledgers: dict[str, Thing] = field(default_factory=dict)
    accounts: dict[str, Thing] = field(default_factory=dict)
    transactions: dict[str, Transaction] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    keys: dict[str, model.ApiKey] = field(default_factory=dict)
    versions: dict[str, model.LedgerTransactionVersion] = field(default_factory=dict)
    """Those that are over."""
    version_entries: dict[str, list[Entry]] = field(default_factory=dict)
    """Theirs, in order."""

    # --- what follows from the entries ----------------------------------------------------------

    def sums(self, account: str, after: int | None = None) -> list[int]:
        """Pending debits and credits, posted debits and credits, after so many writes (or all)."""
        if after is None:
            after = len(self.writes)
        sums = [0, 0, 0, 0]
        for entry in self.entries.values():
            is_live = entry.made <= after and (entry.gone is None or entry.gone > after)
            if entry.account == account and is_live and entry.status is not Status.ARCHIVED:
                side = 0 if entry.direction is Direction.DEBIT else 1
                sums[side + (2 if entry.status is Status.POSTED else 0)] += entry.amount
        return sums

    def version(self, account: str, after: int | None = None) -> int:
        writes = self.writes if after is None else self.writes[: after + 1]
        return sum(1 for write in writes if write.counts and account in write.accounts)

    def balances(self, account: str) -> model.AccountBalances:
        seqs = [w.seq for w in self.writes if w.counts and account in w.accounts]
        pd, pc, od, oc = self.sums(account)
        return model.AccountBalances(
            tenant_id=self.tenant_id,
            ledger_account_id=account,
            pending_debits=pd,
            pending_credits=pc,
            posted_debits=od,
            posted_credits=oc,
            lock_version=self.version(account),
            seq=seqs[-1] if seqs else self.account_created_seq(account),
        )

    def account_created_seq(self, account: str) -> int:
        return self.created_seqs[account]

    created_seqs: dict[str, int] = field(default_factory=dict)

    def entry_row(self, entry: Entry) -> model.LedgerEntry:
        account: Any = self.accounts[entry.account].created
        pd, pc, od, oc = self.sums(entry.account, entry.made)
        gone = entry.gone
        return model.LedgerEntry(
            tenant_id=self.tenant_id,
            id=entry.id,
            ledger_transaction_id=entry.transaction,
            ledger_account_id=entry.account,
            direction=entry.direction,
            status=entry.status,
            amount=entry.amount,
            currency=account.currency,
            currency_exponent=account.currency_exponent,
            normal_balance=account.normal_balance,
            lock_version=self.version(entry.account, entry.made),
            resulting_pending_debits=pd,
            resulting_pending_credits=pc,
            resulting_posted_debits=od,
            resulting_posted_credits=oc,
            shows_resulting_balances=entry.shows,
            metadata=entry.metadata,
            effective_at_us=entry.effective_at,
            created_at_us=entry.stamp.at_us,
            updated_at_us=entry.updated_at,
            discarded_at_us=entry.gone_at,
            discarded_lock_version=None if gone is None else self.version(entry.account, gone),
            seq=entry.seq,
        )

    def transaction_row(self, transaction: Transaction) -> model.LedgerTransaction:
        return model.LedgerTransaction(
            tenant_id=self.tenant_id,
            id=transaction.id,
            ledger_id=transaction.ledger,
            status=transaction.status,
            reverses_id=transaction.reverses,
            reversed_by_id=transaction.reversed_by,
            partially_posts_id=transaction.part_of,
            archived_reason=transaction.archived_reason,
            metadata=transaction.metadata,
            effective_at_us=transaction.effective_at,
            posted_at_us=transaction.posted_at,
            created_at_us=transaction.created_at,
            updated_at_us=transaction.updated_at,
            version=transaction.version,
            seq=transaction.seq,
            **transaction.fields,
        )

    def account_row(self, account: Thing) -> model.LedgerAccount:
        created: Any = account.created
        return model.LedgerAccount(
            tenant_id=self.tenant_id,
            id=account.id,
            ledger_id=created.ledger_id,
            normal_balance=created.normal_balance,
            currency=created.currency,
            currency_exponent=created.currency_exponent,
            ledgerable_type=created.ledgerable_type,
            ledgerable_id=created.ledgerable_id,
            metadata=account.metadata,
            created_at_us=account.created_at,
            updated_at_us=account.updated_at,
            discarded_at_us=account.discarded_at,
            seq=account.seq,
            **account.fields,
        )

    def ledger_row(self, ledger: Thing) -> model.Ledger:
        return model.Ledger(
            tenant_id=self.tenant_id,
            id=ledger.id,
            metadata=ledger.metadata,
            created_at_us=ledger.created_at,
            updated_at_us=ledger.updated_at,
            discarded_at_us=ledger.discarded_at,
            seq=ledger.seq,
            **ledger.fields,
        )

    def holder(self, ledger: str, external_id: str) -> str | None:
        """Id of the transaction that holds it; there is at most one."""
        holders = [
            t.id
            for t in self.transactions.values()
            if t.ledger == ledger
            and t.fields["external_id"] == external_id
            and t.status is not Status.ARCHIVED
        ]
        assert len(holders) < 2
        return holders[0] if holders else None

    def account_holder(self, ledger: str, external_id: str) -> str | None:
        holders = [
            a.id
            for a in self.accounts.values()
            if self.ledger_of(a.id) == ledger
            and a.fields["external_id"] == external_id
            and a.discarded_at is None
        ]
        assert len(holders) < 2
        return holders[0] if holders else None

    def ledger_of(self, account: str) -> str:
        created: Any = self.accounts[account].created
        return str(created.ledger_id)

    # --- executing a command --------------------------------------------------------------------

    def execute(self, command: Any, stamp: Stamp) -> Refusal | bool:
        """A refusal, or whether anything changed."""
        executed: Refusal | bool = getattr(self, f"_{command.__struct_config__.tag}")(
            command, stamp
        )
        return executed

    def _create_api_key(self, command: Any, stamp: Stamp) -> Refusal | bool:
        known = self.keys.get(command.id)
        if known is not None:
            same = known.secret_sha256 == command.secret_sha256
            return False if same else (Unprocessable, "id")
        self.keys[command.id] = model.ApiKey(
            tenant_id=self.tenant_id,
            id=command.id,
            secret_sha256=command.secret_sha256,
            created_at_us=stamp.at_us,
            revoked_at_us=None,
            seq=stamp.seq,
        )
        return True

    def _revoke_api_key(self, command: Any, stamp: Stamp) -> Refusal | bool:
        known = self.keys.get(command.id)
        if known is None:
            return (NotFound, None)
        if known.revoked_at_us is not None:
            return False
        self.keys[command.id] = model.ApiKey(
            tenant_id=self.tenant_id,
            id=command.id,
            secret_sha256=known.secret_sha256,
            created_at_us=known.created_at_us,
            revoked_at_us=stamp.at_us,
            seq=stamp.seq,
        )
        return True

    def _create_ledger(self, command: Any, stamp: Stamp) -> Refusal | bool:
        self.ledgers[stamp.id_base] = thing(command, stamp, ("name", "description"))
        return True

    def _update_ledger(self, command: Any, stamp: Stamp) -> Refusal | bool:
        if self.is_gone(self.ledgers, command.id):
            return (NotFound, "ledger_id")
        return change(self.ledgers[command.id], command, stamp)

    def _delete_ledger(self, command: Any, stamp: Stamp) -> Refusal | bool:
        return discard(self.ledgers.get(command.id), stamp)

    def _create_ledger_account(self, command: Any, stamp: Stamp) -> Refusal | bool:
        if self.is_gone(self.ledgers, command.ledger_id):
            return (NotFound, "ledger_id")
        if command.external_id is not None and self.account_holder(
            command.ledger_id, command.external_id
        ):
            return TAKEN
        fields = ("name", "description", "external_id")
        self.accounts[stamp.id_base] = thing(command, stamp, fields)
        self.created_seqs[stamp.id_base] = stamp.seq
        return True

    def _update_ledger_account(self, command: Any, stamp: Stamp) -> Refusal | bool:
        if self.is_gone(self.accounts, command.id):
            return (NotFound, None)
        ledger = self.ledger_of(command.id)
        if self.is_gone(self.ledgers, ledger):
            return (NotFound, "ledger_id")
        if command.external_id is not UNSET and command.external_id is not None:
            holder = self.account_holder(ledger, command.external_id)
            if holder not in (None, command.id):
                return TAKEN
        return change(self.accounts[command.id], command, stamp)

    def _delete_ledger_account(self, command: Any, stamp: Stamp) -> Refusal | bool:
        return discard(self.accounts.get(command.id), stamp)

    def _update_ledger_entry(self, command: Any, stamp: Stamp) -> Refusal | bool:
        entry = self.entries.get(command.id)
        if entry is None:
            return (NotFound, None)
        metadata = merged(entry.metadata, command.metadata)
        if metadata == entry.metadata:
            return False
        entry.metadata, entry.updated_at, entry.seq = metadata, stamp.at_us, stamp.seq
        return True

    def _create_ledger_transaction(self, command: Any, stamp: Stamp) -> Refusal | bool:
        refusal = self.judge_entries(command.entries)
        if refusal is not None:
            return refusal
        ledger = self.ledger_of(command.entries[0].ledger_account_id)
        is_archived = command.status is Status.ARCHIVED
        holds = command.external_id is not None and not is_archived
        if holds and self.holder(ledger, command.external_id):
            return TAKEN
        refusal = self.judge_locks(command.entries, with_status(command.entries, command.status))
        if refusal == BROKEN_LOCK and command.archives_on_broken_lock:
            return self.record_as_archived(command, stamp)
        if refusal is not None:
            return refusal
        transaction = Transaction(
            id=stamp.id_base,
            ledger=ledger,
            fields=fields_of(command),
            status=command.status,
            effective_at=or_else(command.effective_at_us, stamp.at_us),
            posted_at=stamp.at_us if command.status is Status.POSTED else None,
            metadata=dict(command.metadata),
            created_at=stamp.at_us,
            updated_at=stamp.at_us,
            seq=stamp.seq,
        )
        self.transactions[transaction.id] = transaction
        self.write_entries(stamp, (transaction, command.entries), counts=not is_archived)
        return True

    def record_as_archived(self, command: Any, stamp: Stamp) -> Refusal | bool:
        unlocked = [
            replace(draft, pending_lock=None, posted_lock=None, available_lock=None)
            for draft in command.entries
        ]
        archived = replace(command, entries=tuple(unlocked), status=Status.ARCHIVED)
        assert self._create_ledger_transaction(archived, stamp) is True
        self.transactions[stamp.id_base].archived_reason = "balance_lock_failure"
        return True

    def _update_ledger_transaction(self, command: Any, stamp: Stamp) -> Refusal | bool:
        transaction = self.transactions.get(command.id)
        if transaction is None:
            return (NotFound, None)
        status = transaction.status if command.status is UNSET else command.status
        fields = {
            name: old if getattr(command, name) is UNSET else getattr(command, name)
            for name, old in transaction.fields.items()
        }
        effective_at = (
            transaction.effective_at
            if command.effective_at_us is UNSET
            else command.effective_at_us
        )
        metadata = merged(transaction.metadata, command.metadata)
        writes_entries = (
            command.entries is not UNSET
            or status is not transaction.status
            or effective_at != transaction.effective_at
        )
        if transaction.status is not Status.PENDING and (
            writes_entries or fields != transaction.fields
        ):
            return FORBIDDEN
        if command.entries is not UNSET:
            refusal = self.judge_entries(command.entries)
            if refusal is not None:
                return refusal
            if self.ledger_of(command.entries[0].ledger_account_id) != transaction.ledger:
                return BAD_ENTRIES
        external_id = fields["external_id"]
        holds = external_id is not None and Status.ARCHIVED not in (status, transaction.status)
        if holds and self.holder(transaction.ledger, external_id) not in (None, transaction.id):
            return TAKEN
        if command.entries is not UNSET:
            added = with_status(command.entries, status)
            refusal = self.judge_locks(command.entries, added, transaction.entries)
            if refusal is not None:
                return refusal
        if not writes_entries and (fields, metadata) == (transaction.fields, transaction.metadata):
            return False
        drafts = command.entries
        if drafts is UNSET:
            drafts = [again(entry, transaction) for entry in transaction.entries]
        self.begin_version(transaction, stamp)
        if status is Status.POSTED and transaction.status is Status.PENDING:
            transaction.posted_at = stamp.at_us
        transaction.status, transaction.fields, transaction.metadata = status, fields, metadata
        transaction.effective_at = effective_at
        if writes_entries:
            self.write_entries(stamp, (transaction, drafts))
        if writes_entries and status is Status.ARCHIVED and transaction.reverses is not None:
            self.name_reversal(transaction, None, stamp)
        return True

    def _partially_post_ledger_transaction(self, command: Any, stamp: Stamp) -> Refusal | bool:
        pending = self.transactions.get(command.id)
        if pending is None:
            return (NotFound, None)
        if pending.status is not Status.PENDING:
            return FORBIDDEN
        rest = rest_of(pending, command.entries)
        if rest is None:
            return BAD_PART
        added = with_status(command.entries, Status.POSTED) + with_status(rest, Status.PENDING)
        refusal = self.judge_entries(command.entries) or self.judge_locks(
            command.entries, added, pending.entries
        )
        if refusal is not None:
            return (refusal[0], BAD_PART[1])
        part = Transaction(
            id=stamp.id_base,
            ledger=pending.ledger,
            fields=dict.fromkeys(TRANSACTION_FIELDS) | {"description": command.description},
            status=Status.POSTED,
            effective_at=or_else(command.effective_at_us, stamp.at_us),
            posted_at=stamp.at_us,
            metadata=dict(command.metadata),
            created_at=stamp.at_us,
            updated_at=stamp.at_us,
            seq=stamp.seq,
            part_of=pending.id,
            reverses=pending.reverses,
        )
        self.transactions[part.id] = part
        self.begin_version(pending, stamp)
        self.write_entries(stamp, (part, command.entries), (pending, rest))
        if pending.reverses is not None:
            self.name_reversal(pending, part.id, stamp)
        return True

    def name_reversal(self, reversal: Transaction, instead: str | None, stamp: Stamp) -> None:
        """Have the original name another reversal or none, if it names this one."""
        assert reversal.reverses is not None
        original = self.transactions[reversal.reverses]
        if original.reversed_by == reversal.id:
            self.begin_version(original, stamp)
            original.reversed_by = instead

    def _reverse_ledger_transaction(self, command: Any, stamp: Stamp) -> Refusal | bool:
        original = self.transactions.get(command.id)
        if original is None:
            return (NotFound, None)
        if original.status is not Status.POSTED or original.reversed_by is not None:
            return FORBIDDEN
        created = self._create_ledger_transaction(undoing(command, original), stamp)
        if created is not True:
            return created
        reversal = self.transactions[stamp.id_base]
        reversal.reverses = original.id
        if command.status is not Status.ARCHIVED:
            self.begin_version(original, stamp)
            original.reversed_by = reversal.id
        return True

    def begin_version(self, transaction: Transaction, stamp: Stamp) -> None:
        """Remember what the transaction has been, before any of it changes."""
        version = self.current_version(transaction, stamp.seq)
        self.versions[version.id] = version
        self.version_entries[version.id] = list(transaction.entries)
        transaction.version += 1
        transaction.updated_at, transaction.seq = stamp.at_us, stamp.seq

    def current_version(self, transaction: Transaction, seq: int) -> model.LedgerTransactionVersion:
        return model.LedgerTransactionVersion(
            tenant_id=self.tenant_id,
            id=derive_id(transaction.id, 65536 + transaction.version),
            ledger_transaction_id=transaction.id,
            version=transaction.version,
            ledger_id=transaction.ledger,
            status=transaction.status,
            reverses_id=transaction.reverses,
            reversed_by_id=transaction.reversed_by,
            partially_posts_id=transaction.part_of,
            archived_reason=transaction.archived_reason,
            metadata=transaction.metadata,
            entry_metadata={e.id: e.metadata for e in transaction.entries if e.metadata},
            effective_at_us=transaction.effective_at,
            posted_at_us=transaction.posted_at,
            created_at_us=transaction.updated_at,
            seq=seq,
            **transaction.fields,
        )

    # --- the questions --------------------------------------------------------------------------

    def is_gone(self, things: dict[str, Thing], id: str) -> bool:
        return id not in things or things[id].discarded_at is not None

    def judge_entries(self, drafts: Any) -> Refusal | None:
        if {draft.direction for draft in drafts} != {Direction.CREDIT, Direction.DEBIT}:
            return BAD_ENTRIES
        for draft in drafts:
            if draft.ledger_account_id not in self.accounts:
                return (NotFound, "ledger_entries")
            account = self.accounts[draft.ledger_account_id]
            first = self.ledger_of(drafts[0].ledger_account_id)
            if account.discarded_at is not None or self.is_gone(self.ledgers, first):
                return BAD_ENTRIES
            if self.ledger_of(account.id) != first:
                return BAD_ENTRIES
        units = {self.unit(draft.ledger_account_id) for draft in drafts}
        for unit in units:
            of_unit = [d for d in drafts if self.unit(d.ledger_account_id) == unit]
            debits = sum(d.amount for d in of_unit if d.direction is Direction.DEBIT)
            if debits != sum(d.amount for d in of_unit if d.direction is Direction.CREDIT):
                return BAD_ENTRIES
        return None

    def unit(self, account: str) -> tuple[str, int]:
        created: Any = self.accounts[account].created
        return (created.currency, created.currency_exponent)

    def judge_locks(self, drafts: Any, added: Any, replaced: Any = ()) -> Refusal | None:
        """The locks of `drafts`, with all that is added, by status, in the place of the others."""
        for draft in drafts:
            if draft.lock_version not in (None, self.version(draft.ledger_account_id)):
                return BAD_ENTRIES
        for draft in drafts:
            account = draft.ledger_account_id
            sums = self.sums_with(account, added, replaced)
            amounts = three_balances(self.accounts[account].created, sums)
            for lock, amount in zip(
                (draft.pending_lock, draft.posted_lock, draft.available_lock), amounts, strict=True
            ):
                if lock is not None and not holds(lock, amount):
                    return BROKEN_LOCK
        return None

    def sums_with(self, account: str, added: Any, replaced: Any) -> list[int]:
        """The account's sums with the added drafts, each with its status, for those entries."""
        sums = self.sums(account)
        gone = [(entry.account, entry, entry.status, -1) for entry in replaced]
        come = [(draft.ledger_account_id, draft, status, 1) for draft, status in added]
        for of, item, status, sign in gone + come:
            if of == account and status is not Status.ARCHIVED:
                side = 0 if item.direction is Direction.DEBIT else 1
                sums[side + (2 if status is Status.POSTED else 0)] += sign * item.amount
        return sums

    def write_entries(
        self, stamp: Stamp, *written: tuple[Transaction, Any], counts: bool = True
    ) -> None:
        """One write: each transaction's entries give way to those of its drafts."""
        number = len(self.writes)
        gone = [entry for transaction, _ in written for entry in transaction.entries]
        accounts = {entry.account for entry in gone}
        accounts |= {draft.ledger_account_id for _, drafts in written for draft in drafts}
        self.writes.append(Write(accounts, counts, stamp.seq))
        for entry in gone:
            entry.gone, entry.gone_at = number, stamp.at_us
            entry.updated_at, entry.seq = stamp.at_us, stamp.seq
        ordinal = 1
        for transaction, drafts in written:
            self.write_drafts(transaction, drafts, stamp, ordinal)
            ordinal += len(drafts)

    def write_drafts(
        self, transaction: Transaction, drafts: Any, stamp: Stamp, ordinal: int
    ) -> None:
        number = len(self.writes) - 1
        transaction.entries = [
            Entry(
                id=derive_id(stamp.id_base, ordinal),
                transaction=transaction.id,
                account=draft.ledger_account_id,
                direction=draft.direction,
                amount=draft.amount,
                status=transaction.status,
                effective_at=or_else(draft.effective_at_us, transaction.effective_at),
                metadata=dict(draft.metadata),
                shows=draft.shows_resulting_balances,
                made=number,
                stamp=stamp,
                updated_at=stamp.at_us,
                seq=stamp.seq,
            )
            for ordinal, draft in enumerate(drafts, ordinal)
        ]
        self.entries.update((entry.id, entry) for entry in transaction.entries)


TRANSACTION_FIELDS = ("description", "external_id", "ledgerable_type", "ledgerable_id")


def fields_of(command: Any) -> dict[str, Any]:
    return {name: getattr(command, name) for name in TRANSACTION_FIELDS}


def or_else(value: int | None, default: int) -> int:
    return default if value is None else value


def again(entry: Entry, transaction: Transaction) -> commands.EntryDraft:
    """The same entry once more; dated as its transaction, unless it had a date of its own."""
    own_date = entry.effective_at != transaction.effective_at
    return commands.EntryDraft(
        ledger_account_id=entry.account,
        direction=entry.direction,
        amount=entry.amount,
        effective_at_us=entry.effective_at if own_date else None,
        metadata=entry.metadata,
    )


def with_status(drafts: Any, status: Status) -> list[tuple[commands.EntryDraft, Status]]:
    return [(draft, status) for draft in drafts]


def rest_of(pending: Transaction, posted: Any) -> list[commands.EntryDraft] | None:
    """What stays pending, or None where the posted entries do not match with lesser amounts."""
    rest = []
    left = list(posted)
    for entry in pending.entries:
        side = (entry.account, entry.direction)
        of_side = [d for d in left if (d.ledger_account_id, d.direction) == side]
        if not of_side or of_side[0].amount >= entry.amount:
            return None
        left = [draft for draft in left if draft is not of_side[0]]
        rest.append(replace(again(entry, pending), amount=entry.amount - of_side[0].amount))
    return None if left else rest


def undoing(command: Any, original: Transaction) -> commands.CreateLedgerTransaction:
    """The reversal that is asked for, as any new transaction."""
    other_side = {Direction.DEBIT: Direction.CREDIT, Direction.CREDIT: Direction.DEBIT}
    drafts = [
        replace(again(e, original), direction=other_side[e.direction], metadata={})
        for e in original.entries
    ]
    if command.effective_at_us is not None:
        drafts = [replace(draft, effective_at_us=None) for draft in drafts]
    return commands.CreateLedgerTransaction(
        entries=tuple(drafts),
        status=command.status,
        effective_at_us=or_else(command.effective_at_us, original.effective_at),
        metadata=command.metadata,
        **fields_of(command),
    )


def three_balances(account: Any, sums: list[int]) -> tuple[int, int, int]:
    """Pending, posted and available, from the table of the API reference, §2.3."""
    pending_debits, pending_credits, posted_debits, posted_credits = sums
    if account.normal_balance is Direction.CREDIT:
        return (
            posted_credits + pending_credits - posted_debits - pending_debits,
            posted_credits - posted_debits,
            posted_credits - (posted_debits + pending_debits),
        )
    return (
        posted_debits + pending_debits - posted_credits - pending_credits,
        posted_debits - posted_credits,
        posted_debits - (posted_credits + pending_credits),
    )


def holds(lock: commands.BalanceLock, amount: int) -> bool:
    return (
        (lock.gt is None or amount > lock.gt)
        and (lock.gte is None or amount >= lock.gte)
        and (lock.lt is None or amount < lock.lt)
        and (lock.lte is None or amount <= lock.lte)
        and (lock.eq is None or amount == lock.eq)
    )


def merged(present: dict[str, str], patch: dict[str, str | None]) -> dict[str, str]:
    result = dict(present)
    for key, value in patch.items():
        if value is None or value == "":
            result.pop(key, None)
        else:
            result[key] = value
    return result


def thing(command: Any, stamp: Stamp, fields: tuple[str, ...]) -> Thing:
    return Thing(
        id=stamp.id_base,
        created=command,
        fields={name: getattr(command, name) for name in fields},
        metadata=dict(command.metadata),
        created_at=stamp.at_us,
        updated_at=stamp.at_us,
        seq=stamp.seq,
    )


def change(known: Thing, command: Any, stamp: Stamp) -> bool:
    fields = {
        name: old if getattr(command, name) is UNSET else getattr(command, name)
        for name, old in known.fields.items()
    }
    metadata = merged(known.metadata, command.metadata)
    if (fields, metadata) == (known.fields, known.metadata):
        return False
    known.fields, known.metadata = fields, metadata
    known.updated_at, known.seq = stamp.at_us, stamp.seq
    return True


def discard(known: Thing | None, stamp: Stamp) -> Refusal | bool:
    if known is None:
        return (NotFound, None)
    if known.discarded_at is not None:
        return False
    known.discarded_at = known.updated_at = stamp.at_us
    known.seq = stamp.seq
    return True
