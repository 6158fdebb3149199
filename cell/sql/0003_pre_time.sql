-- Balances as of another time. An account's entries are read in the order in which they were written
-- (its lock versions: the accumulators as of a version are those of its last entry), and in the order
-- of their effective times.
DROP INDEX ledger_entries_account;
CREATE INDEX ledger_entries_account
    ON ledger_entries (tenant_id, ledger_account_id, lock_version, id);
CREATE INDEX ledger_entries_effective
    ON ledger_entries (tenant_id, ledger_account_id, effective_at_us, id);
