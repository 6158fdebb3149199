-- Moves of tenants between cells. Who moves a tenant works here as cloister_mover: it reads all there
-- is and writes the rows of a tenant that it imports or deletes, but changes heads only by the two
-- functions below, which are the whole protocol as far as a cell is concerned. It is SQL and not an
-- endpoint of the cell's process, so that a tenant can be brought to where it belongs while that
-- process is dead or stopped, and so that the pause of writes has no detour in it.

-- How far a copy has come; each chunk of rows is committed together with this. The position is that of
-- the first snapshot: a copy that is resumed reads a later one, but the journal is followed from here.
CREATE TABLE import_progress (
    tenant_id uuid PRIMARY KEY,
    move_id uuid NOT NULL,
    snapshot_seq bigint NOT NULL CHECK (snapshot_seq >= 0),
    snapshot_hash bytea NOT NULL CHECK (octet_length(snapshot_hash) = 32),
    snapshot_at_us bigint NOT NULL,
    table_name text COLLATE "C" NOT NULL,
    after_key text[] COLLATE "C",
    rows_copied bigint NOT NULL DEFAULT 0,
    bytes_copied bigint NOT NULL DEFAULT 0
);
ALTER TABLE import_progress ENABLE ROW LEVEL SECURITY;

-- What the state of a head may become by a move; every other change is a mistake of ours. NULL: there
-- was no head. control_plane/move/heads.py has the same list.
CREATE FUNCTION may_become(old_state head_state, new_state head_state) RETURNS boolean
IMMUTABLE PARALLEL SAFE LANGUAGE sql
RETURN CASE new_state
    WHEN 'importing' THEN old_state IS NULL OR old_state = 'moved'
    WHEN 'ready' THEN coalesce(old_state = 'importing', false)
    WHEN 'owned' THEN coalesce(old_state IN ('owned', 'fenced', 'ready'), false)
    WHEN 'fenced' THEN coalesce(old_state = 'owned', false)
    WHEN 'moved' THEN old_state IS NULL OR old_state IN ('fenced', 'importing', 'ready', 'moved')
    ELSE false
END;

-- One guarded change of a head, by one statement: it names the state, epoch and move expected and the
-- lease term of who asks, and matches nothing where any of them is otherwise. Run it in READ COMMITTED:
-- a fence that waits for a batch in flight then judges, and returns, the head as that batch left it.
-- Returns the head as it is afterwards, or no row. The cell is notified with the commit.
CREATE FUNCTION change_head(
    tenant uuid, term bigint,
    expected_state head_state, expected_epoch bigint, expected_move uuid,
    expected_seq bigint, expected_hash bytea,
    new_state head_state, new_epoch bigint, new_move uuid, empties boolean, new_moved_to text
) RETURNS SETOF tenant_heads
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT may_become(expected_state, new_state) OR new_epoch < expected_epoch THEN
        RAISE EXCEPTION 'a head does not go from % at % to % at %',
            expected_state, expected_epoch, new_state, new_epoch USING ERRCODE = 'CL004';
    END IF;
    IF expected_state IS NULL THEN
        RETURN QUERY
        INSERT INTO tenant_heads (tenant_id, state, epoch, move_id, mover_term, moved_to)
        VALUES (tenant, new_state, new_epoch, new_move, term, new_moved_to)
        ON CONFLICT (tenant_id) DO NOTHING RETURNING *;
    ELSE
        RETURN QUERY
        UPDATE tenant_heads h SET state = new_state, epoch = new_epoch, move_id = new_move,
            mover_term = term, moved_to = new_moved_to,
            last_seq = CASE WHEN empties THEN 0 ELSE h.last_seq END,
            last_hash = CASE WHEN empties THEN sha256('') ELSE h.last_hash END,
            last_at_us = CASE WHEN empties THEN 0 ELSE h.last_at_us END
        WHERE h.tenant_id = tenant AND h.state = expected_state AND h.epoch = expected_epoch
            AND h.move_id IS NOT DISTINCT FROM expected_move AND h.mover_term <= term
            AND (expected_seq IS NULL OR h.last_seq = expected_seq AND h.last_hash = expected_hash)
        RETURNING h.*;
    END IF;
    IF FOUND THEN
        PERFORM pg_notify('cloister_heads', tenant::text);
    END IF;
END $$;

-- The guard of whoever writes or deletes rows of a tenant that this cell does not own: the first
-- statement of each of its database transactions. Advances the position from exactly where it is
-- expected, or leaves it; holds the head, so that a seal waits; raises where anything is otherwise.
CREATE FUNCTION guard_import(
    tenant uuid, term bigint, expected_state head_state, expected_epoch bigint, expected_move uuid,
    expected_seq bigint, expected_hash bytea, new_seq bigint, new_hash bytea, new_at_us bigint
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE tenant_heads h
    SET last_seq = new_seq, last_hash = new_hash, last_at_us = new_at_us, mover_term = term
    WHERE h.tenant_id = tenant AND h.state = expected_state AND h.state IN ('importing', 'moved')
        AND h.epoch = expected_epoch AND h.move_id = expected_move AND h.mover_term <= term
        AND h.last_seq = expected_seq AND h.last_hash = expected_hash;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the head is not % at epoch % and sequence %, or the lease term % is over',
            expected_state, expected_epoch, expected_seq, term USING ERRCODE = 'CL003';
    END IF;
END $$;

REVOKE EXECUTE ON FUNCTION change_head, guard_import FROM PUBLIC;
GRANT EXECUTE ON FUNCTION change_head, guard_import TO cloister_mover;
GRANT USAGE ON SCHEMA public TO cloister_mover;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO cloister_mover;
GRANT INSERT, UPDATE, DELETE ON
    api_keys, ledgers, ledger_accounts, ledger_account_balances, ledger_transactions, ledger_entries,
    ledger_account_balance_monitors, webhook_endpoints, webhook_dead_letters,
    ledger_account_settlements, settlement_entries, settled_accounts, ledger_transaction_versions,
    ledger_account_categories, category_members, category_nestings, bulk_requests, bulk_results,
    ledger_account_statements, ledger_account_day_shifts, ledger_account_bare_versions,
    idempotency_keys, journal, event_watermarks, event_index, import_progress
TO cloister_mover;
GRANT SELECT ON import_progress TO cloister_auditor;
