-- Ledger account settlements. An ordinary write touches none of these tables: which entries are not
-- settled yet is known from how far an account was looked at, and from the open rows before that.

CREATE TYPE settlement_status AS ENUM (
    'drafting', 'processing', 'pending', 'posted', 'archiving', 'archived');

CREATE TABLE ledger_account_settlements (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    ledger_id uuid NOT NULL,
    status settlement_status NOT NULL,
    description text COLLATE "C",
    settled_ledger_account_id uuid NOT NULL,
    contra_ledger_account_id uuid NOT NULL,
    effective_at_upper_bound_us bigint,
    allows_either_direction boolean NOT NULL,
    skips_transaction boolean NOT NULL,
    posts_when_gathered boolean NOT NULL,
    ledger_transaction_id uuid,
    amount numeric CHECK (amount >= 0),
    settlement_entry_direction balance_direction,
    currency text COLLATE "C" NOT NULL,
    currency_exponent smallint NOT NULL,
    metadata jsonb NOT NULL,
    gathered_debits numeric NOT NULL CHECK (gathered_debits >= 0),
    gathered_credits numeric NOT NULL CHECK (gathered_credits >= 0),
    last_version bigint,
    examined_version bigint,
    examined_id uuid,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CHECK ((amount IS NULL) = (settlement_entry_direction IS NULL)),
    CHECK ((status = 'processing') = (examined_version IS NOT NULL)),
    CHECK ((examined_version IS NULL) = (examined_id IS NULL))
);
CREATE UNIQUE INDEX ledger_account_settlements_transaction
    ON ledger_account_settlements (tenant_id, ledger_transaction_id)
    WHERE ledger_transaction_id IS NOT NULL;
CREATE INDEX ledger_account_settlements_account
    ON ledger_account_settlements (tenant_id, settled_ledger_account_id, id);
CREATE INDEX ledger_account_settlements_ledger
    ON ledger_account_settlements (tenant_id, ledger_id, id);
-- What is still to be done; empty but for moments.
CREATE INDEX ledger_account_settlements_unfinished ON ledger_account_settlements (id)
    WHERE status IN ('processing', 'archiving');

-- Of the posted entries that settlements have looked at: who holds them. The key is the entry's id,
-- so that no entry is ever in two settlements.
CREATE TABLE settlement_entries (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    ledger_account_id uuid NOT NULL,
    ledger_transaction_id uuid NOT NULL,
    settlement_id uuid,
    direction balance_direction NOT NULL,
    amount numeric(36, 0) NOT NULL CHECK (amount >= 0),
    effective_at_us bigint NOT NULL,
    is_own boolean NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CHECK (NOT is_own OR settlement_id IS NOT NULL)
) WITH (fillfactor = 90);
CREATE INDEX settlement_entries_open
    ON settlement_entries (tenant_id, ledger_account_id, effective_at_us, id)
    WHERE settlement_id IS NULL;
CREATE INDEX settlement_entries_settlement ON settlement_entries (tenant_id, settlement_id, id)
    WHERE settlement_id IS NOT NULL;

CREATE TABLE settled_accounts (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    examined_version bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

GRANT SELECT ON ledger_account_settlements, settlement_entries, settled_accounts
    TO cloister_writer, cloister_reader, cloister_auditor;
GRANT INSERT, UPDATE ON ledger_account_settlements, settlement_entries, settled_accounts
    TO cloister_writer;

SELECT show_readers_own_rows('ledger_account_settlements', 'settlement_entries', 'settled_accounts');
