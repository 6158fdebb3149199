-- What a restored database holds of a tenant is older than what was acknowledged. Its heads are quarantined
-- before anybody serves by them (cell/restore_watch.py), and leave that state only by an operator's word:
-- owned again, or a tombstone. control_plane/move/heads.py has the same list.
CREATE OR REPLACE FUNCTION may_become(old_state head_state, new_state head_state) RETURNS boolean
IMMUTABLE PARALLEL SAFE LANGUAGE sql
RETURN CASE new_state
    WHEN 'importing' THEN old_state IS NULL OR old_state = 'moved'
    WHEN 'ready' THEN coalesce(old_state = 'importing', false)
    WHEN 'owned' THEN coalesce(old_state IN ('owned', 'fenced', 'ready', 'quarantined'), false)
    WHEN 'fenced' THEN coalesce(old_state = 'owned', false)
    WHEN 'moved' THEN
        old_state IS NULL OR old_state IN ('fenced', 'importing', 'ready', 'moved', 'quarantined')
    ELSE false
END;

-- A number that is drawn anew all the time, and stands in a file beside the database too: an older state of
-- the database has an older number.
CREATE TABLE cell_incarnation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    token uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO cell_incarnation DEFAULT VALUES;
GRANT SELECT, UPDATE ON cell_incarnation TO cloister_writer;
