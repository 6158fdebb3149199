-- Balance monitors. The count on the account's row is what an ordinary write looks at: it is read
-- anyway, and only accounts that have monitors have them read.
ALTER TABLE ledger_accounts ADD COLUMN monitor_count int NOT NULL DEFAULT 0
    CHECK (monitor_count >= 0);

CREATE TABLE ledger_account_balance_monitors (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    ledger_account_id uuid NOT NULL,
    description text COLLATE "C",
    field text COLLATE "C" NOT NULL CHECK (field IN ('available_balance_amount',
        'pending_balance_amount', 'posted_balance_amount', 'ledger_account_lock_version')),
    operator text COLLATE "C" NOT NULL CHECK (operator IN ('less_than', 'less_than_or_equals',
        'equals', 'greater_than_or_equals', 'greater_than')),
    value numeric NOT NULL,
    is_triggered boolean NOT NULL,
    state_since_us bigint NOT NULL,
    metadata jsonb NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    discarded_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX ledger_account_balance_monitors_account
    ON ledger_account_balance_monitors (tenant_id, ledger_account_id, id)
    WHERE discarded_at_us IS NULL;

GRANT SELECT ON ledger_account_balance_monitors
    TO cloister_writer, cloister_reader, cloister_auditor;
GRANT INSERT, UPDATE ON ledger_account_balance_monitors TO cloister_writer;
SELECT show_readers_own_rows('ledger_account_balance_monitors');

-- Where a tenant's events are, worked out from its journal: rows say which segments to read. A topic
-- is an entity's id, or a kind of event in the form of one. A row says nothing that the journal does
-- not, so that writing it again, by whomever, changes nothing.
CREATE TABLE event_index (
    tenant_id uuid NOT NULL,
    topic uuid NOT NULL,
    at_us bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, topic, at_us)
);

-- How far each tenant's journal is in the index; written in one database transaction with the rows.
CREATE TABLE event_watermarks (
    tenant_id uuid PRIMARY KEY,
    seq bigint NOT NULL
) WITH (fillfactor = 50);

-- The projector reads all there is and writes the index, nothing else. It is no login of its own:
-- the cell's writer becomes it on the projector's connection.
GRANT USAGE ON SCHEMA public TO cloister_projector;
GRANT SELECT ON tenant_heads, journal TO cloister_projector;
GRANT SELECT ON event_index, event_watermarks
    TO cloister_projector, cloister_writer, cloister_reader, cloister_auditor;
GRANT INSERT, UPDATE ON event_index, event_watermarks TO cloister_projector;
SELECT show_readers_own_rows('event_index', 'event_watermarks');

-- Where a tenant's events are sent. The key they are signed with is worked out from the platform's
-- secret and the endpoint's id: it is stored nowhere.
CREATE TABLE webhook_endpoints (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    url text COLLATE "C" NOT NULL,
    description text COLLATE "C",
    delivered_seq bigint NOT NULL,
    delivered_ordinal int NOT NULL,
    delivered_at_us bigint NOT NULL,
    attempts int NOT NULL CHECK (attempts >= 0),
    failing_since_us bigint,
    last_error text COLLATE "C",
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    discarded_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE webhook_dead_letters (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    webhook_endpoint_id uuid NOT NULL,
    event_id uuid NOT NULL,
    attempts int NOT NULL,
    last_error text COLLATE "C",
    created_at_us bigint NOT NULL,
    redelivered_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX webhook_dead_letters_endpoint
    ON webhook_dead_letters (tenant_id, webhook_endpoint_id, id) WHERE redelivered_at_us IS NULL;

GRANT SELECT ON webhook_endpoints, webhook_dead_letters
    TO cloister_writer, cloister_reader, cloister_auditor;
GRANT SELECT ON webhook_endpoints TO cloister_projector;
GRANT INSERT, UPDATE ON webhook_endpoints, webhook_dead_letters TO cloister_writer;
SELECT show_readers_own_rows('webhook_endpoints', 'webhook_dead_letters');
