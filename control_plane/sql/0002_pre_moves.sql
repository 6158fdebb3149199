-- Moves of tenants between cells. A row is the plan of a move, which never changes; its decision, which
-- is written once, in the database transaction that changes the placement; and who works on it, for how
-- long. Everything else that is to be known of a move stands in the heads of its two cells.
CREATE TABLE moves (
    move_id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES tenants (organization_id),
    source text COLLATE "C" NOT NULL REFERENCES cells (name),
    target text COLLATE "C" NOT NULL REFERENCES cells (name),
    epoch_old bigint NOT NULL CHECK (epoch_old >= 1),
    epoch_new bigint NOT NULL CHECK (epoch_new > epoch_old),
    wants_abort text,
    decision text COLLATE "C" CHECK (decision IN ('commit', 'abort')),
    decided_at timestamptz,
    lease_holder uuid,
    lease_term bigint NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    phase text NOT NULL DEFAULT 'planned',
    progress jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CHECK (source <> target),
    CHECK ((decision IS NULL) = (decided_at IS NULL)),
    CHECK (finished_at IS NULL OR decision IS NOT NULL)
);
-- A tenant is planned again only when its last move is finished.
CREATE UNIQUE INDEX moves_open ON moves (organization_id) WHERE finished_at IS NULL;
CREATE INDEX moves_created ON moves (created_at);

-- Lease terms, over all moves: a head remembers the highest one that changed it, whatever move it was.
CREATE SEQUENCE mover_terms AS bigint;
