-- As of a time, an account's balances are sums over its live entries with an earlier effective_at. What
-- the account's accumulators were at a midnight is nearly that: it is off by the entries that were
-- written on another day than theirs, or discarded on another. A shift says by how much it is off
-- from this day (days since 1970, UTC) on. Derived from the entries by the writer: see
-- cell/ledger/history.py. An entry written and discarded on its own day moves none.
CREATE TABLE ledger_account_day_shifts (
    tenant_id uuid NOT NULL,
    ledger_account_id uuid NOT NULL,
    day int NOT NULL,
    pending_debits numeric NOT NULL,
    pending_credits numeric NOT NULL,
    posted_debits numeric NOT NULL,
    posted_credits numeric NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, ledger_account_id, day)
) WITH (fillfactor = 70);

-- Every version of an account is shown by the entries it wrote, which hold the resulting accumulators;
-- but for those that only discarded some. Those are here.
CREATE TABLE ledger_account_bare_versions (
    tenant_id uuid NOT NULL,
    ledger_account_id uuid NOT NULL,
    lock_version bigint NOT NULL,
    pending_debits numeric NOT NULL,
    pending_credits numeric NOT NULL,
    posted_debits numeric NOT NULL,
    posted_credits numeric NOT NULL,
    created_at_us bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, ledger_account_id, lock_version)
);

CREATE FUNCTION day_of(at_us bigint) RETURNS int IMMUTABLE PARALLEL SAFE LANGUAGE sql
RETURN ((at_us - (at_us % 86400000000 + 86400000000) % 86400000000) / 86400000000)::int;

-- What was written before this migration. Bare versions need no filling: without a release, there is no
-- database that has one.
INSERT INTO ledger_account_day_shifts
SELECT tenant_id, ledger_account_id, day,
    coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'debit'), 0),
    coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'credit'), 0),
    coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'debit'), 0),
    coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'credit'), 0),
    max(seq)
FROM (
    SELECT e.tenant_id, e.ledger_account_id, e.status, e.direction, s.day, e.amount * s.sign, e.seq
    FROM ledger_entries e CROSS JOIN LATERAL (VALUES
        (e.effective_at_us, e.created_at_us, 1), (e.effective_at_us, e.discarded_at_us, -1)
    ) AS change (dated_us, written_us, sign) CROSS JOIN LATERAL (VALUES
        (day_of(dated_us), sign), (day_of(written_us), -sign)
    ) AS s (day, sign)
    WHERE e.status <> 'archived' AND day_of(dated_us) <> day_of(written_us)
) AS shifts (tenant_id, ledger_account_id, status, direction, day, amount, seq)
GROUP BY tenant_id, ledger_account_id, day;

-- The account's accumulators as of a lock version; one row always, zeros before the first.
CREATE FUNCTION balances_at_version(tenant uuid, account uuid, version bigint)
RETURNS TABLE (
    pending_debits numeric, pending_credits numeric, posted_debits numeric, posted_credits numeric
) STABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT a, b, c, d FROM (
        (SELECT lock_version, resulting_pending_debits, resulting_pending_credits,
            resulting_posted_debits, resulting_posted_credits
        FROM ledger_entries
        WHERE tenant_id = tenant AND ledger_account_id = account AND lock_version <= version
        ORDER BY lock_version DESC LIMIT 1)
        UNION ALL
        (SELECT v.lock_version, v.pending_debits, v.pending_credits, v.posted_debits,
            v.posted_credits
        FROM ledger_account_bare_versions v
        WHERE tenant_id = tenant AND ledger_account_id = account AND lock_version <= version
        ORDER BY lock_version DESC LIMIT 1)
        UNION ALL SELECT -1, 0, 0, 0, 0
    ) AS found (lock_version, a, b, c, d) ORDER BY lock_version DESC LIMIT 1
$$;

-- When a version of an account was written. Entries archived at their creation carry the version that
-- was current, and came later.
CREATE FUNCTION version_written_at_us(tenant uuid, account uuid, version bigint) RETURNS bigint
STABLE PARALLEL SAFE LANGUAGE plpgsql AS $$
BEGIN
    RETURN least(
        (SELECT min(created_at_us) FROM ledger_entries
        WHERE tenant_id = tenant AND ledger_account_id = account AND lock_version = version),
        (SELECT created_at_us FROM ledger_account_bare_versions
        WHERE tenant_id = tenant AND ledger_account_id = account AND lock_version = version)
    );
END $$;

-- The last version of an account that was written before a time, 0 for none. Versions are written one
-- after another, so it is found by halving: twenty look-ups for a million. The last one is tried first.
CREATE FUNCTION version_before(tenant uuid, account uuid, last_version bigint, bound_us bigint)
RETURNS bigint STABLE PARALLEL SAFE LANGUAGE plpgsql AS $$
DECLARE
    written bigint := 0;
    beyond bigint := last_version + 1;
    tried bigint := last_version;
BEGIN
    WHILE tried > written LOOP
        IF version_written_at_us(tenant, account, tried) < bound_us THEN
            written := tried;
        ELSE
            beyond := tried;
        END IF;
        tried := (written + beyond) / 2;
    END LOOP;
    RETURN written;
END $$;

-- The sums over the account's live entries with effective_at before the bound: the accumulators at a
-- midnight, its shifts up to then, and the entries between that midnight and the bound. Of the two
-- midnights around the bound it takes the one with fewer entries between, as far as times can tell; of
-- the shifts, which sum up to zero, the shorter side. Without statistics yet, a table looks so small
-- that plans would read all of it, and plans are kept.
CREATE FUNCTION balances_before(tenant uuid, account uuid, bound_us bigint)
RETURNS TABLE (
    pending_debits numeric, pending_credits numeric, posted_debits numeric, posted_credits numeric
) STABLE PARALLEL SAFE LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    day_us CONSTANT bigint := 86400000000;
    midnight_us bigint := day_of(bound_us) * day_us;
    last_version bigint;
    last_us bigint;
    first_day int;
    last_day int;
    from_day int := -2147483648;
    before_day int;
    shift_sign int := 1;
    entry_sign int := 1;
BEGIN
    SELECT lock_version INTO last_version FROM ledger_account_balances
    WHERE tenant_id = tenant AND ledger_account_id = account;
    IF bound_us > midnight_us THEN
        last_us := version_written_at_us(tenant, account, last_version);
        last_us := least(greatest(last_us, midnight_us), midnight_us + day_us);
        IF bound_us - midnight_us > (last_us - midnight_us) / 2 THEN
            midnight_us := midnight_us + day_us;
            entry_sign := -1;
        END IF;
    END IF;
    before_day := day_of(midnight_us);
    SELECT min(day), max(day) INTO first_day, last_day FROM ledger_account_day_shifts
    WHERE tenant_id = tenant AND ledger_account_id = account;
    IF before_day - first_day > last_day - before_day THEN
        from_day := before_day;
        before_day := 2147483647;
        shift_sign := -1;
    END IF;
    RETURN QUERY
    SELECT v.pending_debits + shift_sign * s.a + entry_sign * e.a,
        v.pending_credits + shift_sign * s.b + entry_sign * e.b,
        v.posted_debits + shift_sign * s.c + entry_sign * e.c,
        v.posted_credits + shift_sign * s.d + entry_sign * e.d
    FROM balances_at_version(
        tenant, account, version_before(tenant, account, last_version, midnight_us)
    ) v, (
        SELECT coalesce(sum(pending_debits), 0) AS a, coalesce(sum(pending_credits), 0) AS b,
            coalesce(sum(posted_debits), 0) AS c, coalesce(sum(posted_credits), 0) AS d
        FROM ledger_account_day_shifts
        WHERE tenant_id = tenant AND ledger_account_id = account
            AND day >= from_day AND day < before_day
    ) s, (
        SELECT
            coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'debit'), 0) AS a,
            coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'credit'), 0) AS b,
            coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'debit'), 0) AS c,
            coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'credit'), 0) AS d
        FROM ledger_entries
        WHERE tenant_id = tenant AND ledger_account_id = account AND discarded_at_us IS NULL
            AND effective_at_us >= least(bound_us, midnight_us)
            AND effective_at_us < greatest(bound_us, midnight_us)
    ) e;
END $$;

-- A statement of an account: what its balances before two times were, at its version at that time.
CREATE TABLE ledger_account_statements (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    ledger_id uuid NOT NULL,
    ledger_account_id uuid NOT NULL,
    description text COLLATE "C",
    metadata jsonb NOT NULL,
    normal_balance balance_direction NOT NULL,
    currency text COLLATE "C" NOT NULL,
    currency_exponent smallint NOT NULL,
    lower_bound_us bigint NOT NULL,
    upper_bound_us bigint NOT NULL CHECK (upper_bound_us >= lower_bound_us),
    lock_version bigint NOT NULL CHECK (lock_version >= 0),
    starting_pending_debits numeric NOT NULL,
    starting_pending_credits numeric NOT NULL,
    starting_posted_debits numeric NOT NULL,
    starting_posted_credits numeric NOT NULL,
    ending_pending_debits numeric NOT NULL,
    ending_pending_credits numeric NOT NULL,
    ending_posted_debits numeric NOT NULL,
    ending_posted_credits numeric NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

GRANT SELECT ON ledger_account_day_shifts, ledger_account_bare_versions, ledger_account_statements
    TO cloister_writer, cloister_reader, cloister_auditor;
GRANT INSERT ON ledger_account_day_shifts, ledger_account_bare_versions, ledger_account_statements
    TO cloister_writer;
GRANT UPDATE ON ledger_account_day_shifts TO cloister_writer;

SELECT show_readers_own_rows('ledger_account_day_shifts', 'ledger_account_bare_versions', 'ledger_account_statements');
