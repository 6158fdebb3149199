"""One record of every command and every kind of row, for tests of the journal's format."""

from cell.journal import Record
from cell.ledger import commands
from cell.ledger.model import (
    AccountBalances,
    ApiKey,
    CategoryMember,
    CategoryNesting,
    Direction,
    Ledger,
    LedgerAccount,
    LedgerAccountCategory,
    LedgerEntry,
    LedgerTransaction,
    Row,
    Status,
    TenantId,
)

TENANT = TenantId("00000000-0000-4000-8000-000000000001")
FIRST_SEQ = 11


def uuid(number: int) -> str:
    return f"018bcfe5-6800-7000-8000-{number:012x}"


KEY = ApiKey(
    tenant_id=TENANT,
    id=uuid(1),
    secret_sha256="0f" * 32,
    created_at_us=1_700_000_000_000_001,
    revoked_at_us=None,
    seq=11,
)
LEDGER = Ledger(
    tenant_id=TENANT,
    id=uuid(2),
    name='Main "quoted" \\ é 💰\n',
    description=None,
    metadata={"k": "v", "": " "},
    created_at_us=1_700_000_000_000_002,
    updated_at_us=1_700_000_000_000_003,
    discarded_at_us=1_700_000_000_000_004,
    seq=12,
)
ACCOUNT = LedgerAccount(
    tenant_id=TENANT,
    id=uuid(3),
    ledger_id=uuid(2),
    name="Cash",
    description="d",
    normal_balance=Direction.DEBIT,
    currency="USD",
    currency_exponent=2,
    external_id="a/b c",
    ledgerable_type="counterparty",
    ledgerable_id="l",
    metadata={},
    created_at_us=1,
    updated_at_us=2,
    discarded_at_us=None,
    seq=13,
)
BALANCES = AccountBalances(
    tenant_id=TENANT,
    ledger_account_id=uuid(3),
    pending_debits=0,
    pending_credits=10**36 - 1,
    posted_debits=2 * (10**36 - 1),
    posted_credits=2**64,
    lock_version=7,
    seq=13,
)
TRANSACTION = LedgerTransaction(
    tenant_id=TENANT,
    id=uuid(4),
    ledger_id=uuid(2),
    status=Status.POSTED,
    description="d",
    external_id="e",
    ledgerable_type=None,
    ledgerable_id=None,
    reverses_id=uuid(5),
    reversed_by_id=None,
    partially_posts_id=None,
    archived_reason=None,
    metadata={"k": "v"},
    effective_at_us=-1,
    posted_at_us=5,
    created_at_us=5,
    updated_at_us=5,
    version=1,
    seq=14,
)
ENTRY = LedgerEntry(
    tenant_id=TENANT,
    id=uuid(6),
    ledger_transaction_id=uuid(4),
    ledger_account_id=uuid(3),
    direction=Direction.CREDIT,
    status=Status.ARCHIVED,
    amount=10**36 - 1,
    currency="USD",
    currency_exponent=2,
    normal_balance=Direction.DEBIT,
    lock_version=7,
    resulting_pending_debits=1,
    resulting_pending_credits=2,
    resulting_posted_debits=3,
    resulting_posted_credits=4,
    shows_resulting_balances=True,
    metadata={},
    effective_at_us=6,
    created_at_us=6,
    updated_at_us=6,
    discarded_at_us=7,
    discarded_lock_version=8,
    seq=14,
)
CATEGORY = LedgerAccountCategory(
    tenant_id=TENANT,
    id=uuid(8),
    ledger_id=uuid(2),
    name="Payable",
    description=None,
    normal_balance=Direction.CREDIT,
    currency="USD",
    currency_exponent=2,
    external_id="e",
    metadata={"k": "v"},
    created_at_us=1,
    updated_at_us=2,
    discarded_at_us=3,
    seq=15,
)
MEMBER = CategoryMember(
    tenant_id=TENANT,
    id=uuid(9),
    category_id=uuid(8),
    ledger_account_id=uuid(3),
    created_at_us=1,
    discarded_at_us=None,
    seq=15,
)
NESTING = CategoryNesting(
    tenant_id=TENANT,
    id=uuid(10),
    category_id=uuid(8),
    sub_category_id=uuid(11),
    created_at_us=1,
    discarded_at_us=2,
    seq=15,
)
LOCK = commands.BalanceLock(gt=-1, gte=0, lt=9, lte=8, eq=7)
DRAFTS = (
    commands.EntryDraft(
        ledger_account_id=uuid(3),
        direction=Direction.DEBIT,
        amount=10**36 - 1,
        effective_at_us=6,
        lock_version=6,
        pending_lock=LOCK,
        posted_lock=commands.BalanceLock(),
        available_lock=commands.BalanceLock(eq=0),
        shows_resulting_balances=True,
        metadata={"k": "v"},
    ),
    commands.EntryDraft(ledger_account_id=uuid(7), direction=Direction.CREDIT, amount=0),
)
COMMANDS: tuple[commands.Command, ...] = (
    commands.CreateApiKey(id=uuid(1), secret_sha256="0f" * 32),
    commands.RevokeApiKey(id=uuid(1)),
    commands.CreateLedger(name="Main", description="d", metadata={"k": "v"}),
    commands.UpdateLedger(id=uuid(2), description=None, metadata={"k": None, "l": ""}),
    commands.DeleteLedger(id=uuid(2)),
    commands.CreateLedgerAccount(
        ledger_id=uuid(2),
        name="Cash",
        normal_balance=Direction.DEBIT,
        currency="USD",
        currency_exponent=2,
    ),
    commands.UpdateLedgerAccount(id=uuid(3), name="n", external_id=None),
    commands.DeleteLedgerAccount(id=uuid(3)),
    commands.CreateLedgerTransaction(
        entries=DRAFTS,
        status=Status.POSTED,
        description="d",
        effective_at_us=6,
        external_id="e",
        ledgerable_type="return",
        ledgerable_id="l",
        metadata={"k": "v"},
    ),
    commands.CreateLedgerTransaction(
        entries=DRAFTS[1:],
        category_locks=(commands.CategoryBalanceLock(category_id=uuid(8), posted_lock=LOCK),),
    ),
    commands.UpdateLedgerTransaction(
        id=uuid(4),
        status=Status.ARCHIVED,
        description=None,
        effective_at_us=7,
        external_id=None,
        ledgerable_type=None,
        ledgerable_id="m",
        entries=DRAFTS[1:],
        metadata={"k": None},
    ),
    commands.UpdateLedgerTransaction(id=uuid(4)),
    commands.UpdateLedgerEntry(id=uuid(6), metadata={"k": "v"}),
    commands.CreateLedgerAccountCategory(
        ledger_id=uuid(2),
        name="Payable",
        normal_balance=Direction.CREDIT,
        currency="USD",
        currency_exponent=2,
        category_ids=(uuid(11),),
    ),
    commands.UpdateLedgerAccountCategory(id=uuid(8), name="n", external_id=None),
    commands.DeleteLedgerAccountCategory(id=uuid(8)),
    commands.AddLedgerAccountToCategory(category_id=uuid(8), ledger_account_id=uuid(3)),
    commands.RemoveLedgerAccountFromCategory(category_id=uuid(8), ledger_account_id=uuid(3)),
    commands.NestLedgerAccountCategory(category_id=uuid(8), sub_category_id=uuid(11)),
    commands.UnnestLedgerAccountCategory(category_id=uuid(8), sub_category_id=uuid(11)),
)
ROWS: tuple[Row, ...] = (
    KEY,
    LEDGER,
    ACCOUNT,
    BALANCES,
    TRANSACTION,
    ENTRY,
    CATEGORY,
    MEMBER,
    NESTING,
)
SAMPLES = tuple(
    Record(
        seq=FIRST_SEQ + number,
        at_us=1_700_000_000_000_000 + number,
        id_base=uuid(100 + number),
        api_key_id=uuid(1) if number % 2 else None,
        idempotency_key=f"key {number}\0é" if number % 2 else None,
        command=command,
        inserted=ROWS if number == 0 else (),
        updated=(ROWS[number % len(ROWS)],),
    )
    for number, command in enumerate(COMMANDS)
)
