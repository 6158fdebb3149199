-- Indexes of the filters of ledgers, categories, monitors and settlements, of which tenants have
-- thousands and write few; and of what lists ask of accounts and of versions. No transaction that is
-- written as posted pays for any of them; one that is posted later pays one entry, for its version.

CREATE INDEX ledgers_updated_at ON ledgers (tenant_id, updated_at_us);
CREATE INDEX ledgers_metadata ON ledgers USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';

-- Comparing an enum is not leakproof, so that readers could not use it as a key; as a predicate, they
-- can. All accounts of a tenant may be of one side but for a few.
CREATE INDEX ledger_accounts_debit ON ledger_accounts (tenant_id, id)
    WHERE normal_balance = 'debit';
CREATE INDEX ledger_accounts_credit ON ledger_accounts (tenant_id, id)
    WHERE normal_balance = 'credit';

CREATE INDEX ledger_account_categories_name ON ledger_account_categories (tenant_id, name, id);
CREATE INDEX ledger_account_categories_currency
    ON ledger_account_categories (tenant_id, currency, id);
CREATE INDEX ledger_account_categories_metadata ON ledger_account_categories
    USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';

CREATE INDEX ledger_account_balance_monitors_metadata ON ledger_account_balance_monitors
    USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';

CREATE INDEX ledger_account_settlements_debit ON ledger_account_settlements (tenant_id, id)
    WHERE settlement_entry_direction = 'debit';
CREATE INDEX ledger_account_settlements_credit ON ledger_account_settlements (tenant_id, id)
    WHERE settlement_entry_direction = 'credit';
CREATE INDEX ledger_account_settlements_updated_at
    ON ledger_account_settlements (tenant_id, updated_at_us);
CREATE INDEX ledger_account_settlements_metadata ON ledger_account_settlements
    USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';

-- Versions are written where a transaction is changed, and asked for by number and by time. Whoever
-- has been changed three times is found by its version 2: see ledger_transaction_versions.py.
CREATE INDEX ledger_transaction_versions_number
    ON ledger_transaction_versions (tenant_id, version, ledger_transaction_id);
CREATE INDEX ledger_transaction_versions_times ON ledger_transaction_versions
    USING brin (created_at_us) WITH (pages_per_range = 32, autosummarize = on);
