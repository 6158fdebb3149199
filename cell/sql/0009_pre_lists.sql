-- Indexes of lists. What an ordinary write pays: three more entries in b-trees (the effective times of
-- a transaction and its two entries) on top of the fourteen of a posted transaction with an external
-- id and an idempotency key. Everything else is partial, so that ordinary rows are not in it, or a block
-- range index, into which a row costs next to nothing: pages written together hold rows of one time.

-- Order and range of effective times over a whole tenant; without it each page would sort all of it.
CREATE INDEX ledger_transactions_effective ON ledger_transactions (tenant_id, effective_at_us, id);
CREATE INDEX ledger_entries_effective_at ON ledger_entries (tenant_id, effective_at_us, id);

-- Posted is what nearly all become; whoever asks for the others asks for few. The status itself is
-- not in the key: comparing an enum is not leakproof, so that readers could not use it.
CREATE INDEX ledger_transactions_unposted ON ledger_transactions (tenant_id, id)
    WHERE status <> 'posted';
CREATE INDEX ledger_entries_unposted ON ledger_entries (tenant_id, id)
    WHERE status <> 'posted' AND discarded_at_us IS NULL;

CREATE INDEX ledger_transactions_ledgerable ON ledger_transactions (tenant_id, ledgerable_id, id)
    WHERE ledgerable_id IS NOT NULL;
CREATE INDEX ledger_transactions_ledgerable_type
    ON ledger_transactions (tenant_id, ledgerable_type, id) WHERE ledgerable_type IS NOT NULL;

CREATE INDEX ledger_accounts_metadata ON ledger_accounts USING gin (metadata jsonb_path_ops)
    WHERE metadata <> '{}';
CREATE INDEX ledger_transactions_metadata ON ledger_transactions
    USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';
CREATE INDEX ledger_entries_metadata ON ledger_entries USING gin (metadata jsonb_path_ops)
    WHERE metadata <> '{}';

-- autosummarize: the newest ranges would otherwise be read whole until the next vacuum.
CREATE INDEX ledger_transactions_times ON ledger_transactions
    USING brin (created_at_us, updated_at_us, posted_at_us)
    WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX ledger_entries_times ON ledger_entries
    USING brin (created_at_us, updated_at_us)
    WITH (pages_per_range = 32, autosummarize = on);

-- Accounts are written seldom, and listed by all of these.
CREATE INDEX ledger_accounts_name ON ledger_accounts (tenant_id, name, id);
CREATE INDEX ledger_accounts_currency ON ledger_accounts (tenant_id, currency, id);
CREATE INDEX ledger_accounts_created_at ON ledger_accounts (tenant_id, created_at_us);
CREATE INDEX ledger_accounts_updated_at ON ledger_accounts (tenant_id, updated_at_us);
