-- Categories: graphs of ledger accounts. An account or a category is put into a category by a row of
-- its own, which is discarded when it is taken out; an edge counts while both its ends are live.

CREATE TABLE ledger_account_categories (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    ledger_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    description text COLLATE "C",
    normal_balance balance_direction NOT NULL,
    currency text COLLATE "C" NOT NULL,
    currency_exponent smallint NOT NULL CHECK (currency_exponent BETWEEN 0 AND 30),
    external_id text COLLATE "C",
    metadata jsonb NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    discarded_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX ledger_account_categories_external_id
    ON ledger_account_categories (tenant_id, external_id, ledger_id)
    WHERE external_id IS NOT NULL AND discarded_at_us IS NULL;
CREATE INDEX ledger_account_categories_ledger ON ledger_account_categories (tenant_id, ledger_id, id);

-- The sum over a category reads its members in the order of the accounts' balances.
CREATE TABLE category_members (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    category_id uuid NOT NULL,
    ledger_account_id uuid NOT NULL,
    created_at_us bigint NOT NULL,
    discarded_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX category_members_of_category
    ON category_members (tenant_id, category_id, ledger_account_id) WHERE discarded_at_us IS NULL;
CREATE INDEX category_members_of_account
    ON category_members (tenant_id, ledger_account_id, category_id) WHERE discarded_at_us IS NULL;

CREATE TABLE category_nestings (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    category_id uuid NOT NULL,
    sub_category_id uuid NOT NULL,
    created_at_us bigint NOT NULL,
    discarded_at_us bigint,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CHECK (category_id <> sub_category_id)
);
CREATE UNIQUE INDEX category_nestings_below
    ON category_nestings (tenant_id, category_id, sub_category_id) WHERE discarded_at_us IS NULL;
CREATE INDEX category_nestings_above
    ON category_nestings (tenant_id, sub_category_id, category_id) WHERE discarded_at_us IS NULL;

-- The category and all live categories below it, each once; empty where it is not live itself.
CREATE FUNCTION category_graph(of_tenant uuid, top uuid) RETURNS uuid[]
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH RECURSIVE inside (id) AS (
        SELECT c.id FROM ledger_account_categories c
        WHERE c.tenant_id = of_tenant AND c.id = top AND c.discarded_at_us IS NULL
        UNION
        SELECT s.id FROM inside i
        JOIN category_nestings n ON n.tenant_id = of_tenant AND n.category_id = i.id
            AND n.discarded_at_us IS NULL
        JOIN ledger_account_categories s ON s.tenant_id = of_tenant AND s.id = n.sub_category_id
            AND s.discarded_at_us IS NULL
    )
    SELECT coalesce(array_agg(id), '{}') FROM inside
$$;

-- All live categories that hold the account, directly or through others, each once.
CREATE FUNCTION categories_holding(of_tenant uuid, account uuid) RETURNS uuid[]
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH RECURSIVE holding (id) AS (
        SELECT c.id FROM category_members m
        JOIN ledger_account_categories c ON c.tenant_id = of_tenant AND c.id = m.category_id
            AND c.discarded_at_us IS NULL
        WHERE m.tenant_id = of_tenant AND m.ledger_account_id = account
            AND m.discarded_at_us IS NULL
        UNION
        SELECT c.id FROM holding h
        JOIN category_nestings n ON n.tenant_id = of_tenant AND n.sub_category_id = h.id
            AND n.discarded_at_us IS NULL
        JOIN ledger_account_categories c ON c.tenant_id = of_tenant AND c.id = n.category_id
            AND c.discarded_at_us IS NULL
    )
    SELECT coalesce(array_agg(id), '{}') FROM holding
$$;

-- The accumulators of all accounts in the category, an account reached by two routes counted once;
-- with a bound, over their entries that are effective before it. Planned anew for each graph: whether
-- a million accounts or three are to be joined to their balances is known from the statistics of the
-- very categories, and from nothing else. Sees the snapshot of the statement that calls it, as every
-- stable function.
CREATE FUNCTION category_sums(
    of_tenant uuid, top uuid, bound_us bigint DEFAULT NULL, OUT pending_debits numeric,
    OUT pending_credits numeric, OUT posted_debits numeric, OUT posted_credits numeric
) LANGUAGE plpgsql STABLE PARALLEL SAFE COST 10000 AS $$
DECLARE
    graph uuid[] := category_graph(of_tenant, top);
    members text := format(
        'SELECT ledger_account_id FROM category_members WHERE tenant_id = %L'
        ' AND category_id = ANY (%L::uuid[]) AND discarded_at_us IS NULL', of_tenant, graph);
    balances text := format(
        'JOIN ledger_account_balances b'
        ' ON b.tenant_id = %L AND b.ledger_account_id = m.ledger_account_id', of_tenant);
BEGIN
    IF cardinality(graph) > 1 THEN
        members := members || ' GROUP BY ledger_account_id';
    END IF;
    IF bound_us IS NOT NULL THEN
        balances := format(
            'CROSS JOIN LATERAL balances_before(%L, m.ledger_account_id, %L::bigint) b',
            of_tenant, bound_us);
    END IF;
    EXECUTE format(
        'SELECT coalesce(sum(b.pending_debits), 0), coalesce(sum(b.pending_credits), 0),'
        ' coalesce(sum(b.posted_debits), 0), coalesce(sum(b.posted_credits), 0)'
        ' FROM (%s) m %s', members, balances
    ) INTO pending_debits, pending_credits, posted_debits, posted_credits;
END $$;

GRANT SELECT ON ledger_account_categories, category_members, category_nestings
    TO cloister_writer, cloister_reader, cloister_auditor;
GRANT INSERT, UPDATE ON ledger_account_categories, category_members, category_nestings
    TO cloister_writer;

SELECT show_readers_own_rows('ledger_account_categories', 'category_members', 'category_nestings');
