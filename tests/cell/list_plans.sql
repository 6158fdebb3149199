-- One tenant's rows, for test_list_plans: %(count)s transactions of two entries each, and %(few)s of
-- what tenants have thousands of. What lists are asked for is rare, and was mostly written first, while
-- lists begin with what was written last.
-- Ids are of the millisecond of their rows' creation: made one a millisecond from June 20 of 2024,
CREATE OR REPLACE FUNCTION pg_temp.id_at(ms bigint, tail bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT (lpad(to_hex(ms >> 16), 8, '0') || '-' || lpad(to_hex(ms & 65535), 4, '0')
        || '-7000-8000-' || lpad(to_hex(tail), 12, '0'))::uuid $$;
CREATE OR REPLACE FUNCTION pg_temp.made_us(n int) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT (1718900000000 + n) * 1000 $$;
CREATE OR REPLACE FUNCTION pg_temp.made(kind int, n int) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT pg_temp.id_at(1718900000000 + n, (kind::bigint << 32) + n) $$;
-- and transactions written ten milliseconds apart from June 21, each dated twenty minutes after the one before.
CREATE OR REPLACE FUNCTION pg_temp.written_us(n int) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT (1719000000000 + n * 10) * 1000 $$;
CREATE OR REPLACE FUNCTION pg_temp.written(n int, ordinal int) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT pg_temp.id_at(1719000000000 + n * 10, ordinal) $$;
CREATE OR REPLACE FUNCTION pg_temp.dated_us(n int) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT 1600000000000000 + n * 1200000000::bigint $$;
CREATE OR REPLACE FUNCTION pg_temp.tag(n int) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT CASE WHEN n <= 20 THEN '{"k": "rare"}' WHEN n %% 3 = 0 THEN '{"k": "usual"}' ELSE '{}' END::jsonb $$;
-- Two of the first were changed last.
CREATE OR REPLACE FUNCTION pg_temp.changed_us(n int, at_us bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT CASE WHEN n IN (11, 12) THEN 1799000000000000 + n ELSE at_us END $$;
INSERT INTO tenant_heads (tenant_id, state, epoch) VALUES (%(tenant)s::uuid, 'owned', 1);
INSERT INTO ledgers SELECT %(tenant)s::uuid, pg_temp.made(1, n),
    'ledger ' || n, NULL, pg_temp.tag(n),
    pg_temp.made_us(n), pg_temp.changed_us(n, pg_temp.made_us(n)), NULL, n
FROM generate_series(1, %(few)s) n;
INSERT INTO ledger_accounts SELECT %(tenant)s::uuid, pg_temp.made(2, n),
    pg_temp.made(1, CASE WHEN n <= 20 THEN 7 ELSE 1 END),
    'account ' || n, NULL, (CASE WHEN n %% 4 = 1 AND n <= 20 THEN 'debit' ELSE 'credit' END)::balance_direction,
    CASE WHEN n <= 20 THEN 'EUR' ELSE 'USD' END, 2, CASE WHEN n <= 20 THEN 'e-' || n END, NULL, NULL,
    pg_temp.tag(n), pg_temp.made_us(n), pg_temp.changed_us(n, pg_temp.made_us(n)), NULL, n
FROM generate_series(1, 3 * %(few)s) n;
INSERT INTO ledger_account_balances
SELECT tenant_id, id, 0, 0, 0, CASE WHEN seq <= 20 THEN 700 + seq ELSE 0 END, 1, seq FROM ledger_accounts
WHERE tenant_id = %(tenant)s::uuid;
INSERT INTO ledger_transactions SELECT %(tenant)s::uuid, pg_temp.written(n, 0),
    pg_temp.made(1, CASE WHEN n %% 5000 = 0 OR n <= 20 THEN 7 ELSE 1 END),
    (CASE n %% 5000 WHEN 1 THEN 'pending' WHEN 2 THEN 'archived' ELSE 'posted' END)::transaction_status,
    NULL, CASE WHEN n %% 5 = 0 THEN 'x-' || n END,
    (ARRAY['expected_payment', 'incoming_payment_detail', 'payment_order', 'return', 'reversal'])[n %% 5000 - 9],
    CASE WHEN n %% 5000 BETWEEN 10 AND 14 THEN 'r-' || n END,
    CASE WHEN n %% 5000 = 4 THEN pg_temp.written(3, 0) END, NULL,
    CASE WHEN n %% 5000 = 5 THEN pg_temp.written(1, 0) END, NULL,
    pg_temp.tag(n), pg_temp.dated_us(n),
    CASE WHEN n %% 5000 NOT IN (1, 2) THEN pg_temp.changed_us(n, pg_temp.written_us(n)) END,
    pg_temp.written_us(n), pg_temp.changed_us(n, pg_temp.written_us(n) + 1000000 * (n %% 5 = 0)::int),
    CASE WHEN n %% 5000 = 5 THEN 3 WHEN n %% 5 = 0 THEN 1 ELSE 0 END,
    n + CASE WHEN n %% 5 = 0 THEN 1000000000 ELSE 0 END
FROM generate_series(1, %(count)s) n;
INSERT INTO ledger_transaction_versions
SELECT tenant_id, pg_temp.written((seq - 1000000000)::int, 65536 + over), id, over, ledger_id, status,
    description, external_id, ledgerable_type, ledgerable_id, reverses_id, reversed_by_id,
    partially_posts_id, archived_reason, metadata, '{}', effective_at_us, posted_at_us,
    created_at_us + 200000 * over, seq
FROM ledger_transactions CROSS JOIN LATERAL generate_series(0, version - 1) over
WHERE tenant_id = %(tenant)s::uuid AND version > 0;
INSERT INTO ledger_entries SELECT %(tenant)s::uuid,
    pg_temp.written(n, side + 1), pg_temp.written(n, 0),
    pg_temp.made(2, CASE WHEN side = 0 THEN 21 WHEN n <= 20 THEN 3005 WHEN n <= %(count)s / 5 AND n %% 4 = 1 THEN 3050 ELSE 1 + n %% 3000 END),
    (CASE side WHEN 0 THEN 'debit' ELSE 'credit' END)::balance_direction,
    (CASE n %% 5000 WHEN 1 THEN 'pending' WHEN 2 THEN 'archived' ELSE 'posted' END)::transaction_status,
    n, 'USD', 2, 'credit', n, 0, 0, 0, 0, false, pg_temp.tag(n), pg_temp.dated_us(n), pg_temp.written_us(n),
    pg_temp.changed_us(n, pg_temp.written_us(n)), NULL, NULL, n
FROM generate_series(1, %(count)s) n, generate_series(0, 1) side;
-- The statements are of an account in all transactions; another one was in many of the first, and rests.
INSERT INTO ledger_account_statements SELECT %(tenant)s::uuid, pg_temp.made(3, n), pg_temp.made(1, 1),
    pg_temp.made(2, 21), NULL, '{}', 'credit', 'USD', 2, pg_temp.dated_us(100), pg_temp.dated_us(400),
    %(count)s, 0, 0, 0, 0, 0, 0, 0, 0, pg_temp.written_us(%(count)s + 1), pg_temp.written_us(%(count)s + 1),
    %(count)s + 1
FROM generate_series(1, 20) n;
-- Categories: the first holds all accounts, the 30th ten that were used at first only.
INSERT INTO ledger_account_categories SELECT %(tenant)s::uuid, pg_temp.made(4, n),
    pg_temp.made(1, CASE WHEN n BETWEEN 2 AND 30 THEN 7 ELSE 1 END), 'category ' || n, NULL, 'credit',
    CASE WHEN n <= 20 THEN 'EUR' ELSE 'USD' END, 2, CASE WHEN n <= 20 THEN 'c-' || n END,
    pg_temp.tag(n), pg_temp.made_us(n), pg_temp.made_us(n), NULL::bigint, n
FROM generate_series(1, %(few)s) n;
INSERT INTO category_members
SELECT %(tenant)s::uuid, gen_random_uuid(), pg_temp.made(4, 1), id, created_at_us, NULL::bigint, seq
FROM ledger_accounts WHERE tenant_id = %(tenant)s::uuid
UNION ALL
SELECT %(tenant)s::uuid, gen_random_uuid(), pg_temp.made(4, 30), pg_temp.made(2, n), pg_temp.made_us(n), NULL::bigint, n
FROM generate_series(3001, 3010) n
UNION ALL
SELECT %(tenant)s::uuid, gen_random_uuid(), pg_temp.made(4, 29), pg_temp.made(2, n), pg_temp.made_us(n), NULL::bigint, n
FROM generate_series(1, 10) n
UNION ALL
SELECT %(tenant)s::uuid, gen_random_uuid(), pg_temp.made(4, n), pg_temp.made(2, n), pg_temp.made_us(n), NULL::bigint, n
FROM generate_series(50, %(few)s) n;
INSERT INTO category_nestings
SELECT %(tenant)s::uuid, gen_random_uuid(), pg_temp.made(4, 30), pg_temp.made(4, n), pg_temp.made_us(n), NULL::bigint, n
FROM generate_series(40, 45) n
UNION ALL
SELECT %(tenant)s::uuid, gen_random_uuid(), pg_temp.made(4, n), pg_temp.made(4, n + 1), pg_temp.made_us(n), NULL::bigint, n
FROM generate_series(100, %(few)s - 1, 2) n;
INSERT INTO ledger_account_balance_monitors SELECT %(tenant)s::uuid, pg_temp.made(5, n),
    pg_temp.made(2, CASE WHEN n <= 20 THEN 5 ELSE 1 + n %% 1000 END), NULL, 'posted_balance_amount',
    'less_than', 0, false, 0, pg_temp.tag(n), pg_temp.made_us(n), pg_temp.made_us(n), NULL::bigint, n
FROM generate_series(1, %(few)s) n;
-- Settlements: the first has gathered a fourth of all entries, the 30th a hundred.
INSERT INTO ledger_account_settlements SELECT %(tenant)s::uuid, pg_temp.made(6, n),
    pg_temp.made(1, CASE WHEN n <= 20 THEN 7 ELSE 1 END), 'posted', NULL,
    pg_temp.made(2, CASE WHEN n <= 20 THEN 5 ELSE 21 END), pg_temp.made(2, 22), NULL, false, false, false,
    pg_temp.written(n, 0), 1, (CASE WHEN n <= 20 THEN 'debit' ELSE 'credit' END)::balance_direction, 'USD', 2,
    pg_temp.tag(n), 0, 0, 1, NULL, NULL, pg_temp.made_us(n), pg_temp.changed_us(n, pg_temp.made_us(n)), n
FROM generate_series(1, %(few)s) n;
INSERT INTO settlement_entries SELECT %(tenant)s::uuid, pg_temp.written(n, 1), pg_temp.made(2, 21),
    pg_temp.written(n, 0), CASE WHEN n <= 100 THEN pg_temp.made(6, 30) WHEN n <= %(count)s / 4 THEN pg_temp.made(6, 1) END,
    'debit', n, pg_temp.dated_us(n), false, n
FROM generate_series(1, %(count)s / 2) n;
INSERT INTO bulk_requests SELECT %(tenant)s::uuid, pg_temp.made(7, n),
    CASE WHEN n <= 5 THEN 'update' WHEN n <= 10 THEN 'delete' ELSE 'create' END,
    CASE WHEN n <= 10 THEN 'ledger_account' ELSE 'ledger_transaction' END,
    CASE WHEN n <= 5 THEN 'pending' WHEN n <= 10 THEN 'processing' ELSE 'completed' END,
    pg_temp.tag(n), 5, CASE WHEN n > 10 THEN 5 ELSE 0 END, 0, pg_temp.made_us(n), pg_temp.made_us(n), n
FROM generate_series(1, %(few)s) n;
INSERT INTO bulk_results SELECT %(tenant)s::uuid, pg_temp.made(8, n), pg_temp.made(7, n / 5),
    CASE WHEN n <= 30 THEN 'ledger_account' ELSE 'ledger_transaction' END,
    CASE WHEN n <= 5 THEN 'pending' WHEN n <= 10 THEN 'failed' ELSE 'successful' END, '{}',
    CASE WHEN n <= 5 THEN '{}' END,
    CASE WHEN n > 30 THEN pg_temp.written(n, 0) WHEN n > 10 THEN pg_temp.made(2, n) END,
    CASE WHEN n BETWEEN 6 AND 10 THEN 'c' END, CASE WHEN n BETWEEN 6 AND 10 THEN 'm' END, NULL,
    pg_temp.made_us(n), pg_temp.made_us(n), n
FROM generate_series(1, 4 * %(few)s) n;
INSERT INTO webhook_endpoints SELECT %(tenant)s::uuid, pg_temp.made(9, n), 'https://example.com', NULL,
    0, 0, 0, 0, NULL, NULL, pg_temp.made_us(n), pg_temp.made_us(n), NULL::bigint, n
FROM generate_series(1, 100) n;
INSERT INTO webhook_dead_letters SELECT %(tenant)s::uuid, pg_temp.made(10, n),
    pg_temp.made(9, CASE WHEN n <= 20 THEN 5 ELSE 1 + n %% 4 END), pg_temp.made(11, n), 1, NULL,
    pg_temp.made_us(n), CASE WHEN n > 20 AND n %% 2 = 0 THEN pg_temp.made_us(n) END, n
FROM generate_series(1, %(few)s) n;
INSERT INTO event_index SELECT %(tenant)s::uuid, pg_temp.made(12, n), pg_temp.made_us(n), n
FROM generate_series(1, 5 * %(few)s) n;
