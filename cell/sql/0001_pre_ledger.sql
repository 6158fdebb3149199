-- The ledger of a cell. Every tenant table has tenant_id first in its key, carries the tenant
-- sequence of its last change (seq), and is subject to row-level security. Text that is compared
-- or sorted is in the "C" collation, so that order and cursors survive a move to another machine.
-- Times are microseconds since 1970 UTC in a bigint: a transaction with two entries carries ten of
-- them, and reading ten timestamps from text took a quarter of the database's time for the row.

CREATE TYPE head_state AS ENUM ('owned', 'importing', 'ready', 'fenced', 'moved', 'quarantined');
CREATE TYPE balance_direction AS ENUM ('credit', 'debit');
CREATE TYPE transaction_status AS ENUM ('pending', 'posted', 'archived');

-- The cell itself. writer_epoch fences a second sequencer: each start raises it, each batch checks it.
CREATE TABLE cell_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    writer_epoch bigint NOT NULL DEFAULT 0,
    incarnation uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO cell_head DEFAULT VALUES;

-- One row per tenant: who may write here, and how far the journal has come.
CREATE TABLE tenant_heads (
    tenant_id uuid PRIMARY KEY,
    state head_state NOT NULL,
    epoch bigint NOT NULL CHECK (epoch > 0),
    last_seq bigint NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    last_hash bytea NOT NULL DEFAULT sha256('') CHECK (octet_length(last_hash) = 32),
    last_at_us bigint NOT NULL DEFAULT 0,
    move_id uuid,
    mover_term bigint NOT NULL DEFAULT 0,
    moved_to text COLLATE "C"
) WITH (fillfactor = 50);

CREATE TABLE api_keys (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    secret_sha256 text COLLATE "C" NOT NULL CHECK (secret_sha256 ~ '^[0-9a-f]{64}$'),
    created_at_us bigint NOT NULL,
    revoked_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE ledgers (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    description text COLLATE "C",
    metadata jsonb NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    discarded_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE ledger_accounts (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    ledger_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    description text COLLATE "C",
    normal_balance balance_direction NOT NULL,
    currency text COLLATE "C" NOT NULL,
    currency_exponent smallint NOT NULL CHECK (currency_exponent BETWEEN 0 AND 30),
    external_id text COLLATE "C",
    ledgerable_type text COLLATE "C",
    ledgerable_id text COLLATE "C",
    metadata jsonb NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    discarded_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX ledger_accounts_external_id ON ledger_accounts (tenant_id, external_id, ledger_id)
    WHERE external_id IS NOT NULL AND discarded_at_us IS NULL;
CREATE INDEX ledger_accounts_ledger ON ledger_accounts (tenant_id, ledger_id, id);

-- The accumulators stand apart from the account's text: a small row without any index on what
-- changes, so that every write is a heap-only update and a hot account leaves one row version a batch.
CREATE TABLE ledger_account_balances (
    tenant_id uuid NOT NULL,
    ledger_account_id uuid NOT NULL,
    pending_debits numeric NOT NULL CHECK (pending_debits >= 0),
    pending_credits numeric NOT NULL CHECK (pending_credits >= 0),
    posted_debits numeric NOT NULL CHECK (posted_debits >= 0),
    posted_credits numeric NOT NULL CHECK (posted_credits >= 0),
    lock_version bigint NOT NULL CHECK (lock_version >= 0),
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, ledger_account_id)
) WITH (fillfactor = 70);

CREATE TABLE ledger_transactions (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
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
    effective_at_us bigint NOT NULL,
    posted_at_us bigint,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    version int NOT NULL CHECK (version >= 0),
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CHECK ((status = 'posted') = (posted_at_us IS NOT NULL))
) WITH (fillfactor = 95);
CREATE UNIQUE INDEX ledger_transactions_external_id
    ON ledger_transactions (tenant_id, external_id, ledger_id)
    WHERE external_id IS NOT NULL AND status <> 'archived';
-- Archived ones may share an external id, and are listed by it all the same.
CREATE INDEX ledger_transactions_external_id_archived
    ON ledger_transactions (tenant_id, external_id)
    WHERE external_id IS NOT NULL AND status = 'archived';
CREATE INDEX ledger_transactions_ledger ON ledger_transactions (tenant_id, ledger_id, id);

-- An entry is immutable but for its metadata and for being discarded. The four resulting_* columns
-- are the account's accumulators after the whole transaction: the entry is its own audit trail.
CREATE TABLE ledger_entries (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    ledger_transaction_id uuid NOT NULL,
    ledger_account_id uuid NOT NULL,
    direction balance_direction NOT NULL,
    status transaction_status NOT NULL,
    amount numeric(36, 0) NOT NULL CHECK (amount >= 0),
    currency text COLLATE "C" NOT NULL,
    currency_exponent smallint NOT NULL,
    normal_balance balance_direction NOT NULL,
    lock_version bigint NOT NULL,
    resulting_pending_debits numeric NOT NULL,
    resulting_pending_credits numeric NOT NULL,
    resulting_posted_debits numeric NOT NULL,
    resulting_posted_credits numeric NOT NULL,
    shows_resulting_balances boolean NOT NULL,
    metadata jsonb NOT NULL,
    effective_at_us bigint NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    discarded_at_us bigint,
    discarded_lock_version bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CHECK ((discarded_at_us IS NULL) = (discarded_lock_version IS NULL))
) WITH (fillfactor = 95);
CREATE INDEX ledger_entries_transaction ON ledger_entries (tenant_id, ledger_transaction_id);
CREATE INDEX ledger_entries_account ON ledger_entries (tenant_id, ledger_account_id, id);

-- digest = first 128 bits of the hash of (API key id, idempotency key); the key itself is in the
-- journal record at seq, from which the first answer is rendered again.
CREATE TABLE idempotency_keys (
    tenant_id uuid NOT NULL,
    digest uuid NOT NULL,
    created_at_us bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, digest)
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys USING brin (created_at_us);

-- Append-only: one segment per (tenant, batch); body is compressed already.
CREATE TABLE journal (
    tenant_id uuid NOT NULL,
    first_seq bigint NOT NULL CHECK (first_seq > 0),
    last_seq bigint NOT NULL CHECK (last_seq >= first_seq),
    epoch bigint NOT NULL,
    format smallint NOT NULL,
    body bytea NOT NULL,
    prev_hash bytea NOT NULL CHECK (octet_length(prev_hash) = 32),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (tenant_id, first_seq)
);
ALTER TABLE journal ALTER COLUMN body SET STORAGE EXTERNAL;

-- The guard: the first statement of every batch. It locks the writer row (so that a successor, which
-- raises the epoch, waits for a batch in flight and is seen by every later one) and advances the
-- heads in one UPDATE whose WHERE names the exact state, epoch and position expected. READ COMMITTED
-- only: the ownership read must be the guarded statement itself. Anything else raises and rolls back.
CREATE FUNCTION guard_batch(
    expected_writer_epoch bigint, tenant_ids uuid[], epochs bigint[],
    previous_seqs bigint[], last_seqs bigint[], hashes bytea[], times_us bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    advanced bigint;
BEGIN
    PERFORM 1 FROM cell_head WHERE writer_epoch = expected_writer_epoch FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'writer epoch % is over', expected_writer_epoch USING ERRCODE = 'CL001';
    END IF;
    UPDATE tenant_heads h
    SET last_seq = v.last_seq, last_hash = v.hash, last_at_us = v.at_us
    FROM unnest(tenant_ids, epochs, previous_seqs, last_seqs, hashes, times_us)
        AS v (tenant_id, epoch, previous_seq, last_seq, hash, at_us)
    WHERE h.tenant_id = v.tenant_id AND h.state = 'owned' AND h.epoch = v.epoch
        AND h.last_seq = v.previous_seq;
    GET DIAGNOSTICS advanced = ROW_COUNT;
    IF advanced <> cardinality(tenant_ids) THEN
        RAISE EXCEPTION '% of % heads advanced', advanced, cardinality(tenant_ids)
            USING ERRCODE = 'CL002';
    END IF;
END $$;

-- Who may do what. The owner holds the tables, the writer is the sequencer (all tenants in a batch,
-- hence BYPASSRLS), the reader sees one tenant a transaction (unset: none), the auditor only reads.
GRANT USAGE ON SCHEMA public TO cloister_writer, cloister_reader, cloister_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO cloister_writer, cloister_reader, cloister_auditor;
GRANT INSERT ON api_keys, ledgers, ledger_accounts, ledger_account_balances, ledger_transactions,
    ledger_entries, idempotency_keys, journal, tenant_heads TO cloister_writer;
GRANT UPDATE ON api_keys, ledgers, ledger_accounts, ledger_account_balances, ledger_transactions,
    ledger_entries, tenant_heads, cell_head TO cloister_writer;
GRANT DELETE ON idempotency_keys TO cloister_writer;

-- Each migration says this of the tenant tables that it makes.
CREATE FUNCTION show_readers_own_rows(VARIADIC tenant_tables text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    tenant_table text;
BEGIN
    FOREACH tenant_table IN ARRAY tenant_tables LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', tenant_table);
        EXECUTE format(
            'CREATE POLICY own_rows ON %I TO cloister_reader USING '
            '(tenant_id = nullif(current_setting(''cloister.tenant_id'', true), '''')::uuid)',
            tenant_table
        );
    END LOOP;
END $$;
SELECT show_readers_own_rows('tenant_heads', 'api_keys', 'ledgers', 'ledger_accounts',
    'ledger_account_balances', 'ledger_transactions', 'ledger_entries', 'idempotency_keys', 'journal');
