-- The window in which a move can be rolled back, what the pause of its writes may cost, and the final
-- position of the source, which is written with the decision.
ALTER TABLE moves
    ADD COLUMN follows uuid REFERENCES moves (move_id),
    ADD COLUMN window_s integer NOT NULL DEFAULT 0 CHECK (window_s >= 0),
    ADD COLUMN max_pause_ms integer NOT NULL DEFAULT 150 CHECK (max_pause_ms > 0),
    ADD COLUMN window_ends_at timestamptz,
    ADD COLUMN cut_seq bigint,
    ADD COLUMN cut_hash bytea CHECK (octet_length(cut_hash) = 32);
-- A move is rolled back once.
CREATE UNIQUE INDEX moves_follows ON moves (follows);
