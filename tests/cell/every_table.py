"""A tenant with a row in every table."""

from cell_writing import API_KEY, Writing, execute, transfer

from cell.ledger import commands
from cell.ledger.model import MonitoredField, MonitorOperator, Status, TenantId


async def fill_tenant(writer: Writing, tenant_id: TenantId, dsn: str) -> None:
    key = commands.CreateApiKey(id=API_KEY, secret_sha256="a" * 64)
    await writer.apply(tenant_id, key)
    ledger_id = await writer.ledger(tenant_id)
    upper = await writer.category(tenant_id, ledger_id)
    await writer.category(tenant_id, ledger_id, category_ids=(upper,))
    cash, alice, bob = await writer.accounts(tenant_id, 3, ledger_id)
    await writer.apply(tenant_id, transfer(cash, alice), key="k")
    await writer.apply(tenant_id, monitor_of(alice))
    execute(dsn, "INSERT INTO event_watermarks VALUES (%s, 1)", tenant_id)
    place = (tenant_id, alice)
    execute(dsn, "INSERT INTO event_index VALUES (%s, %s, 1, 1)", *place)
    settlement = commands.CreateLedgerAccountSettlement(
        settled_ledger_account_id=alice,
        contra_ledger_account_id=cash,
        entries_per_step=10,
        allows_either_direction=True,
    )
    await writer.apply(tenant_id, settlement)
    held = await writer.apply(tenant_id, transfer(cash, alice, status=Status.PENDING))
    posted = commands.UpdateLedgerTransaction(id=held.inserted[0].id, status=Status.POSTED)
    await writer.apply(tenant_id, posted)
    endpoint = commands.CreateWebhookEndpoint(url="https://example.com/hook")
    receiver = (await writer.apply(tenant_id, endpoint)).inserted[0]
    given_up = commands.RecordWebhookDelivery(
        id=receiver.id,
        delivered_seq=receiver.seq + 1,
        delivered_ordinal=1,
        delivered_at_us=1,
        dead_event_id=API_KEY,
    )
    await writer.apply(tenant_id, given_up)
    await writer.account(tenant_id, ledger_id, category_ids=(upper,))
    delete = commands.DeleteLedgerAccount(id=alice)
    await writer.apply(
        tenant_id,
        commands.CreateBulkRequest(
            action_type="delete",
            resource_type="ledger_account",
            items=(commands.BulkItem(request_params="{}", command=delete),),
        ),
    )
    # Dated otherwise, and then taken off an account.
    pending = transfer(cash, alice, status=Status.PENDING, effective_at_us=0)
    made = await writer.apply(tenant_id, pending)
    moved = transfer(cash, bob).entries
    edit = commands.UpdateLedgerTransaction(id=made.inserted[0].id, entries=moved)
    await writer.apply(tenant_id, edit)
    statement = commands.CreateLedgerAccountStatement(
        ledger_account_id=alice, lower_bound_us=0, upper_bound_us=1
    )
    await writer.apply(tenant_id, statement)


def monitor_of(account_id: str) -> commands.CreateBalanceMonitor:
    return commands.CreateBalanceMonitor(
        ledger_account_id=account_id,
        field=MonitoredField.POSTED,
        operator=MonitorOperator.EQUALS,
        value=1,
    )
