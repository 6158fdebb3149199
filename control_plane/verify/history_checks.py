"""The checks of what is derived from the entries so that the past is read fast.

As `checks`: each statement returns only what disagrees, bounded by `limit`.
"""

from typing import Any, Final

import psycopg

from control_plane.verify.checks import ACCUMULATORS, rows_of
from control_plane.verify.report import Findings

Connection = psycopg.Connection[Any]

# An entry shifts the balances as of the end of a day, against what was written by then, where it
# was written or discarded on another day than the one it is dated. Days that are the same cancel.
_DAY_SHIFTS: Final = """
WITH changes AS (
    SELECT ledger_account_id AS account, status, direction, amount,
        floor(effective_at_us / 86400000000.0)::int AS dated,
        floor(created_at_us / 86400000000.0)::int AS created,
        floor(discarded_at_us / 86400000000.0)::int AS discarded
    FROM ledger_entries WHERE tenant_id = %(tenant)s AND status <> 'archived'
), moved AS (
    SELECT account, status, direction, dated AS day, amount FROM changes WHERE dated <> created
    UNION ALL
    SELECT account, status, direction, created, -amount FROM changes WHERE dated <> created
    UNION ALL
    SELECT account, status, direction, dated, -amount FROM changes WHERE dated <> discarded
    UNION ALL
    SELECT account, status, direction, discarded, amount FROM changes WHERE dated <> discarded
), sums AS (
    SELECT account, day,
        coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'debit'), 0) AS a,
        coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'credit'), 0) AS b,
        coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'debit'), 0) AS c,
        coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'credit'), 0) AS d
    FROM moved GROUP BY account, day
), kept AS (
    SELECT ledger_account_id AS account, day, pending_debits AS a, pending_credits AS b,
        posted_debits AS c, posted_credits AS d
    FROM ledger_account_day_shifts WHERE tenant_id = %(tenant)s
)
SELECT account, day,
    ARRAY[coalesce(s.a, 0), coalesce(s.b, 0), coalesce(s.c, 0), coalesce(s.d, 0)]::text AS expected,
    ARRAY[coalesce(k.a, 0), coalesce(k.b, 0), coalesce(k.c, 0), coalesce(k.d, 0)]::text AS found
FROM kept k FULL JOIN sums s USING (account, day)
WHERE (coalesce(k.a, 0), coalesce(k.b, 0), coalesce(k.c, 0), coalesce(k.d, 0))
    <> (coalesce(s.a, 0), coalesce(s.b, 0), coalesce(s.c, 0), coalesce(s.d, 0))
ORDER BY account, day LIMIT %(limit)s
"""


def compare_day_shifts(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Every account's shifts are those of its entries; a day without any counts as zeros."""
    for row in rows_of(connection, _DAY_SHIFTS, tenant=tenant_id):
        message = f"shift of {', '.join(ACCUMULATORS)} on day {row['day']} since 1970"
        findings.note("day_shifts", message, row["expected"], row["found"], str(row["account"]))


_BARE_VERSIONS: Final = """
WITH changes AS (
    SELECT ledger_account_id AS account, lock_version AS version, created_at_us AS written_us,
        false AS is_discard, status, direction, amount
    FROM ledger_entries WHERE tenant_id = %(tenant)s
    UNION ALL
    SELECT ledger_account_id, discarded_lock_version, discarded_at_us, true, status, direction,
        -amount
    FROM ledger_entries WHERE tenant_id = %(tenant)s AND discarded_lock_version IS NOT NULL
), running AS (
    SELECT account, version, written_us, is_discard, ARRAY[
        coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'debit') OVER w, 0),
        coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'credit') OVER w, 0),
        coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'debit') OVER w, 0),
        coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'credit') OVER w, 0)
    ] AS sums
    FROM changes WINDOW w AS (PARTITION BY account ORDER BY version)
), bare AS (
    -- Not by version alone: what is archived at its creation later carries the version, too.
    SELECT account, version, ARRAY[written_us::numeric] || min(sums) AS expected
    FROM running GROUP BY account, version, written_us HAVING bool_and(is_discard)
), kept AS (
    SELECT ledger_account_id AS account, lock_version AS version, ARRAY[created_at_us,
        pending_debits, pending_credits, posted_debits, posted_credits] AS found
    FROM ledger_account_bare_versions WHERE tenant_id = %(tenant)s
)
SELECT account, version, expected::text, found::text
FROM kept FULL JOIN bare USING (account, version)
WHERE found IS DISTINCT FROM expected ORDER BY account, version LIMIT %(limit)s
"""


def compare_bare_versions(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Every version that only discarded entries is kept with the sums after it, and no other."""
    for row in rows_of(connection, _BARE_VERSIONS, tenant=tenant_id):
        message = f"time and {', '.join(ACCUMULATORS)} of bare version {row['version']}"
        findings.note("bare_versions", message, row["expected"], row["found"], str(row["account"]))
