-- One tenant's rows, for test_list_plans: %(count)s transactions of two entries each, of which one in
-- five thousand is special in each of the ways that lists can be asked about.
CREATE OR REPLACE FUNCTION pg_temp.ledger(n int) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('0190a000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$;
CREATE OR REPLACE FUNCTION pg_temp.account(n int) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('0190a001-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$;
-- Written ten milliseconds apart, the first in June 2024.
CREATE OR REPLACE FUNCTION pg_temp.written(n int, ordinal int) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT (lpad(to_hex((1719000000000 + n * 10) >> 16), 8, '0') || '-'
        || lpad(to_hex((1719000000000 + n * 10) & 65535), 4, '0')
        || '-7000-8000-' || lpad(to_hex(ordinal), 12, '0'))::uuid $$;
INSERT INTO tenant_heads (tenant_id, state, epoch) VALUES (%(tenant)s, 'owned', 1);
INSERT INTO ledgers SELECT %(tenant)s, pg_temp.ledger(n),
    'l', NULL, '{}', 1718900000000000 + n, 1718900000000000 + n, NULL, 1
FROM generate_series(1, 10) n;
INSERT INTO ledger_accounts SELECT %(tenant)s,
    pg_temp.account(n),
    pg_temp.ledger(CASE WHEN n <= 20 THEN 7 ELSE 1 END),
    'account ' || n, NULL, (CASE n %% 2 WHEN 0 THEN 'debit' ELSE 'credit' END)::balance_direction,
    CASE WHEN n <= 20 THEN 'EUR' ELSE 'USD' END, 2, CASE WHEN n <= 20 THEN 'e-' || n END, NULL, NULL,
    CASE WHEN n <= 20 THEN jsonb_build_object('k', n::text) ELSE '{}' END,
    1718900000000000 + n * 1000, 1718900000000000 + n * 1000, NULL, 1
FROM generate_series(1, 10000) n;
INSERT INTO ledger_account_balances SELECT tenant_id, id, 0, 0, 0, 0, 0, 1 FROM ledger_accounts
WHERE tenant_id = %(tenant)s;
INSERT INTO ledger_transactions SELECT %(tenant)s,
    pg_temp.written(n, 0),
    pg_temp.ledger(CASE WHEN n %% 5000 = 0 THEN 7 ELSE 1 END),
    (CASE n %% 5000 WHEN 1 THEN 'pending' WHEN 2 THEN 'archived' ELSE 'posted' END)::transaction_status,
    NULL, CASE WHEN n %% 5 = 0 THEN 'x-' || n END,
    CASE WHEN n %% 5000 = 3 THEN 'return' END, CASE WHEN n %% 5000 = 3 THEN 'r-' || n END,
    CASE WHEN n %% 5000 = 4 THEN pg_temp.written(0, 0) END, NULL,
    CASE WHEN n %% 5000 = 5 THEN pg_temp.written(0, 0) END, NULL,
    CASE WHEN n %% 100 = 0 THEN jsonb_build_object('k', (n %% 5000)::text || '-' || n / 5000) ELSE '{}' END,
    1600000000000000 + n * 60000000::bigint,
    CASE WHEN n %% 5000 NOT IN (1, 2) THEN (1719000000000 + n * 10) * 1000 END,
    (1719000000000 + n * 10) * 1000, (1719000000000 + n * 10) * 1000, 0, n
FROM generate_series(1, %(count)s) n;
INSERT INTO ledger_entries SELECT %(tenant)s,
    pg_temp.written(n, side + 1), pg_temp.written(n, 0),
    pg_temp.account(CASE side WHEN 0 THEN 21 ELSE 1 + n %% 10000 END),
    (CASE side WHEN 0 THEN 'debit' ELSE 'credit' END)::balance_direction,
    (CASE n %% 5000 WHEN 1 THEN 'pending' WHEN 2 THEN 'archived' ELSE 'posted' END)::transaction_status,
    n, 'USD', 2, 'credit', n, 0, 0, 0, 0, false,
    CASE WHEN n %% 100 = 0 THEN jsonb_build_object('k', (n %% 5000)::text || '-' || n / 5000) ELSE '{}' END,
    1600000000000000 + n * 60000000::bigint, (1719000000000 + n * 10) * 1000,
    (1719000000000 + n * 10) * 1000, NULL, NULL, n
FROM generate_series(1, %(count)s) n, generate_series(0, 1) side;
