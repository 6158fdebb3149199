-- The last reconciliation of each tenant, and what it found; empty problems say that all agreed.
CREATE TABLE reconciliations (
    organization_id uuid PRIMARY KEY REFERENCES tenants (organization_id) ON DELETE CASCADE,
    reconciled_at timestamptz NOT NULL DEFAULT now(),
    problems jsonb NOT NULL
);
