-- A cell is notified only where what it remembers of the tenant may be wrong. A pin changes neither the
-- owner nor the epoch; and what is fenced is as it was left, for nobody writes it: reads go on, and writes
-- meet the guard. Told of them, the cell would forget the tenant's rows, and read each account from the
-- database again just while the tenant's rows are copied there, or while its writes pause. All else is as
-- before.
CREATE OR REPLACE FUNCTION change_head(
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
    IF FOUND AND NOT (
        new_state = 'fenced' OR (expected_state = 'owned' AND new_state = 'owned' AND new_epoch = expected_epoch)
    ) THEN
        PERFORM pg_notify('cloister_heads', tenant::text);
    END IF;
END $$;
