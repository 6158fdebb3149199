-- The last version of an account that was written before a time, 0 for none. Versions are written one
-- after another, and most entries are dated as they are written: the latest ones dated before the bound
-- show a version from which on it is found in steps that double, then halve. Of an account that was
-- written in order, that is two look-ups; of any other, twice twenty for a million versions.
CREATE OR REPLACE FUNCTION version_before(
    tenant uuid, account uuid, last_version bigint, bound_us bigint
)
RETURNS bigint STABLE PARALLEL SAFE LANGUAGE plpgsql AS $$
DECLARE
    written bigint;
    beyond bigint := last_version;
    step bigint := 1;
    tried bigint;
BEGIN
    IF version_written_at_us(tenant, account, last_version) < bound_us THEN
        RETURN last_version;
    END IF;
    SELECT coalesce(max(lock_version), 0) INTO written FROM (
        SELECT lock_version, created_at_us FROM ledger_entries
        WHERE tenant_id = tenant AND ledger_account_id = account AND effective_at_us < bound_us
        ORDER BY effective_at_us DESC LIMIT 8
    ) AS latest WHERE created_at_us < bound_us;
    WHILE beyond - written > 1 LOOP
        tried := least(written + step, (written + beyond) / 2);
        IF version_written_at_us(tenant, account, tried) < bound_us THEN
            written := tried;
            step := step * 2;
        ELSE
            beyond := tried;
        END IF;
    END LOOP;
    RETURN written;
END $$;
