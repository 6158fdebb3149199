"""The amounts of the three balances as SQL, for filters; the arithmetic is that of `balances`."""

from typing import LiteralString

from cell.ledger.balances import BalanceKind


def amount_sql(kind: BalanceKind, owner: LiteralString, sums: LiteralString) -> LiteralString:
    """An expression; `owner` is the alias of what has the normal balance, `sums` of the four."""
    if kind == "available":
        return f"""(CASE {owner}.normal_balance
            WHEN 'credit'
            THEN {sums}.posted_credits - {sums}.posted_debits - {sums}.pending_debits
            ELSE {sums}.posted_debits - {sums}.posted_credits - {sums}.pending_credits END)"""
    net: LiteralString = f"{sums}.posted_credits - {sums}.posted_debits"
    if kind == "pending":
        net = f"{net} + {sums}.pending_credits - {sums}.pending_debits"
    return f"((CASE {owner}.normal_balance WHEN 'credit' THEN 1 ELSE -1 END) * ({net}))"
