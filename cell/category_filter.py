"""The filter of lists by a category: whatever concerns the accounts in it or in any below it."""

from typing import Final, LiteralString

from cell.listing import Filters
from cell.parameters import Kind, Parameter

CATEGORY: Final = Parameter("ledger_account_category_id", Kind.ID)


def in_category(account_id: LiteralString) -> LiteralString:
    """The condition on a column of account ids; takes the tenant twice, then the category.

    Constants, of which the planner works out the graph beforehand, so that it knows from the
    statistics of its very categories how many accounts are in them.
    """
    return f"""EXISTS (
    SELECT FROM category_members m
    WHERE m.tenant_id = %s AND m.category_id = ANY(category_graph(%s, %s))
        AND m.ledger_account_id = {account_id} AND m.discarded_at_us IS NULL)
"""


def restrict_to_category(filters: Filters, tenant_id: str, condition: LiteralString) -> None:
    """Add the condition, made of `in_category`, where the query asks for a category.

    No statistics know whether those accounts are busy: a list of them is not walked to its end.
    """
    category_id = filters.query.uuid(CATEGORY.name)
    if category_id is not None:
        filters.add(condition, tenant_id, tenant_id, category_id, in_order_of=())
