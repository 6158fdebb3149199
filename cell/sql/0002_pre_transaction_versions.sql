-- What a ledger transaction was before each of its changes; one that was never changed has no row.
-- The entries of a version are those that were live when it was made: only their metadata can change
-- afterwards, and is kept here as it was, by entry, where there is any. Rows are never changed.
CREATE TABLE ledger_transaction_versions (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    ledger_transaction_id uuid NOT NULL,
    version int NOT NULL CHECK (version >= 0),
    ledger_id uuid NOT NULL,
    status transaction_status NOT NULL,
    description text COLLATE "C",
    external_id text COLLATE "C",
    ledgerable_type text COLLATE "C",
    ledgerable_id text COLLATE "C",
    reverses_id uuid,
    reversed_by_id uuid,
    partially_posts_id uuid,
    archived_reason text COLLATE "C",
    metadata jsonb NOT NULL,
    entry_metadata jsonb NOT NULL,
    effective_at_us bigint NOT NULL,
    posted_at_us bigint,
    created_at_us bigint NOT NULL,
    seq bigint NOT NULL,
    -- Ids are in the order of transaction and version, so that this is the index of both.
    PRIMARY KEY (tenant_id, id)
);

-- Reversals and partial posts are found by what they are about; ordinary transactions are in neither.
CREATE INDEX ledger_transactions_reverses ON ledger_transactions (tenant_id, reverses_id, id)
    WHERE reverses_id IS NOT NULL;
CREATE INDEX ledger_transactions_partially_posts
    ON ledger_transactions (tenant_id, partially_posts_id, id)
    WHERE partially_posts_id IS NOT NULL;

GRANT SELECT ON ledger_transaction_versions
    TO cloister_writer, cloister_reader, cloister_auditor;
GRANT INSERT ON ledger_transaction_versions TO cloister_writer;
SELECT show_readers_own_rows('ledger_transaction_versions');
