-- The catalog: which tenants there are, where each lives, and which cells can hold them.
-- No secret is ever stored here: of an API key only its id and the SHA-256 of its 256 random bits.

-- Cells as the provider runs them, and as they were last observed.
CREATE TABLE cells (
    name text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9-]{0,39}$'),
    zone text NOT NULL,
    api_address text NOT NULL,
    accepts_tenants boolean NOT NULL,
    observed jsonb,
    observed_at timestamptz,
    CHECK ((observed IS NULL) = (observed_at IS NULL))
);

-- A tenant is provisioning until its head and its first key exist on its first cell; only then does
-- it get a placement. attempt names the request that may complete the creation: a repeated request
-- takes over by changing it, and the earlier one then finds that it lost.
CREATE TABLE tenants (
    organization_id uuid PRIMARY KEY,
    slug text COLLATE "C" NOT NULL UNIQUE CHECK (slug ~ '^[a-z][a-z0-9-]{1,62}$'),
    state text NOT NULL CHECK (state IN ('provisioning', 'active')),
    first_cell text COLLATE "C" NOT NULL REFERENCES cells (name),
    attempt uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Where a tenant lives: the one row that decides. Changed by compare-and-set on (cell, epoch) only.
CREATE TABLE placements (
    organization_id uuid PRIMARY KEY REFERENCES tenants (organization_id),
    cell text COLLATE "C" NOT NULL REFERENCES cells (name),
    epoch bigint NOT NULL CHECK (epoch >= 1),
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX placements_cell ON placements (cell);

-- confirmed_at: when the tenant's cell said that it knows the key. A key that was never confirmed
-- was never shown to anybody.
CREATE TABLE api_keys (
    organization_id uuid NOT NULL REFERENCES tenants (organization_id),
    key_id uuid NOT NULL,
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    confirmed_at timestamptz,
    revoked_at timestamptz,
    PRIMARY KEY (organization_id, key_id)
);

-- Raised in the same database transaction as every change that routers must learn. Its row lock
-- also puts those changes in one order, so that a higher version always holds all lower ones.
CREATE TABLE routing_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL CHECK (version >= 1)
);
INSERT INTO routing_version (version) VALUES (1);

-- Who did what, when. detail holds names and numbers, never credentials.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    detail jsonb NOT NULL
);
CREATE INDEX audit_subject ON audit (subject, id);
