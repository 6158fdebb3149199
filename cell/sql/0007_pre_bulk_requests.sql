-- The durable queue: bulk requests, and per row of a request its result, which until it is applied
-- holds the command to apply. Asynchronous ledger transactions are bulk requests of one row.

CREATE TABLE bulk_requests (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    action_type text COLLATE "C" NOT NULL CHECK (action_type IN ('create', 'update', 'delete')),
    resource_type text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL CHECK (status IN ('pending', 'processing', 'completed')),
    metadata jsonb NOT NULL,
    total_count int NOT NULL CHECK (total_count > 0),
    success_count int NOT NULL CHECK (success_count >= 0),
    failed_count int NOT NULL CHECK (failed_count >= 0),
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CHECK (success_count + failed_count <= total_count),
    CHECK ((status = 'completed') = (success_count + failed_count = total_count))
) WITH (fillfactor = 70);
-- One index for each filter of the listing, ordered as it is; a status but the last one is rare.
CREATE INDEX bulk_requests_status ON bulk_requests (tenant_id, status, id);
CREATE INDEX bulk_requests_action ON bulk_requests (tenant_id, action_type, id);
CREATE INDEX bulk_requests_resource ON bulk_requests (tenant_id, resource_type, action_type, id);
CREATE INDEX bulk_requests_resource_alone ON bulk_requests (tenant_id, resource_type, id);
CREATE INDEX bulk_requests_metadata ON bulk_requests USING gin (metadata jsonb_path_ops)
    WHERE metadata <> '{}';

CREATE TABLE bulk_results (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    request_id uuid NOT NULL,
    resource_type text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL CHECK (status IN ('pending', 'successful', 'failed')),
    request_params text COLLATE "C" NOT NULL,
    command text COLLATE "C",
    entity_id uuid,
    error_code text COLLATE "C",
    error_message text COLLATE "C",
    error_parameter text COLLATE "C",
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CHECK ((status = 'pending') = (command IS NOT NULL)),
    CHECK ((status = 'successful') = (entity_id IS NOT NULL)),
    CHECK ((status = 'failed') = (error_code IS NOT NULL)),
    CHECK ((status = 'failed') = (error_message IS NOT NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX bulk_results_request ON bulk_results (tenant_id, request_id, id);
-- The queue itself: rows leave it as they are applied.
CREATE INDEX bulk_results_pending ON bulk_results (tenant_id, id) WHERE status = 'pending';
CREATE INDEX bulk_results_failed ON bulk_results (tenant_id, id) WHERE status = 'failed';
CREATE INDEX bulk_results_successful ON bulk_results (tenant_id, id) WHERE status = 'successful';
CREATE INDEX bulk_results_resource ON bulk_results (tenant_id, resource_type, id)
    WHERE status = 'successful';
CREATE INDEX bulk_results_entity ON bulk_results (tenant_id, entity_id)
    WHERE entity_id IS NOT NULL;

GRANT SELECT ON bulk_requests, bulk_results
    TO cloister_writer, cloister_reader, cloister_auditor;
GRANT INSERT, UPDATE ON bulk_requests, bulk_results TO cloister_writer;

SELECT show_readers_own_rows('bulk_requests', 'bulk_results');
