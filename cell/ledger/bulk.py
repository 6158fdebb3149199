"""The rules of bulk requests: what is queued now and applied later, each row by itself (pure).

A result is the row's place in the queue. It is settled by the very command that applies the row, so
that effect and result are there together or not at all; once settled, it is never applied again.
A row that a rule refuses is no refused command: its result says why, and that is the effect.
"""

import msgspec
from msgspec.structs import replace

from cell.errors import ApiError, NotFound
from cell.ids import derive_id
from cell.ledger.commands import (
    ApplyQueued,
    BulkError,
    BulkItem,
    CreateBulkRequest,
    CreateLedgerAccount,
    CreateLedgerTransaction,
    Queueable,
    QueueLedgerTransaction,
    RefuseQueued,
)
from cell.ledger.model import (
    BulkRequest,
    BulkResult,
    BulkStatus,
    Effects,
    LedgerAccount,
    LedgerTransaction,
    ResultStatus,
    Stamp,
    TenantId,
)
from cell.ledger.needs import FURTHER_NEEDS, Needs, note_needs
from cell.ledger.rules import State, apply

_encoder = msgspec.json.Encoder()


@note_needs.register
def _needs_of_new(command: CreateBulkRequest, tenant_id: TenantId, needs: Needs) -> None:
    """A row's needs are those of the time when it is applied."""


@note_needs.register
def _needs_of_queueing(command: QueueLedgerTransaction, tenant_id: TenantId, needs: Needs) -> None:
    note_needs(command.inner, tenant_id, needs)


@note_needs.register
def _needs_of_queued(command: ApplyQueued, tenant_id: TenantId, needs: Needs) -> None:
    _note_result(command, tenant_id, needs)
    note_needs(command.inner, tenant_id, needs)


@note_needs.register
def _needs_of_refused(command: RefuseQueued, tenant_id: TenantId, needs: Needs) -> None:
    _note_result(command, tenant_id, needs)


def _note_result(command: ApplyQueued | RefuseQueued, tenant_id: TenantId, needs: Needs) -> None:
    needs.row(BulkResult, tenant_id, command.id)
    needs.row(BulkRequest, tenant_id, command.request_id)


def _note_further(
    command: QueueLedgerTransaction | ApplyQueued, state: State, needs: Needs
) -> None:
    further = FURTHER_NEEDS.get(type(command.inner))
    if further is not None:
        further(command.inner, state, needs)


FURTHER_NEEDS[QueueLedgerTransaction] = _note_further
FURTHER_NEEDS[ApplyQueued] = _note_further


@apply.register
def _create_bulk_request(command: CreateBulkRequest, state: State, stamp: Stamp) -> Effects:
    failed = sum(item.error is not None for item in command.items)
    request = BulkRequest(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        action_type=command.action_type,
        resource_type=command.resource_type,
        status=_status(len(command.items), failed),
        metadata=command.metadata,
        total_count=len(command.items),
        success_count=0,
        failed_count=failed,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        seq=stamp.seq,
    )
    results = [_result(request, item, ordinal) for ordinal, item in enumerate(command.items, 1)]
    return Effects(inserted=(request, *results))


def _result(request: BulkRequest, item: BulkItem, ordinal: int) -> BulkResult:
    assert (item.command is None) != (item.error is None)
    result = BulkResult(
        tenant_id=request.tenant_id,
        id=derive_id(request.id, ordinal),
        request_id=request.id,
        resource_type=request.resource_type,
        status=ResultStatus.PENDING,
        request_params=item.request_params,
        command=None,
        entity_id=None,
        error_code=None,
        error_message=None,
        error_parameter=None,
        created_at_us=request.created_at_us,
        updated_at_us=request.updated_at_us,
        seq=request.seq,
    )
    if item.error is not None:
        return _failed(result, item.error)
    return replace(result, command=_encoder.encode(item.command).decode())


@apply.register
def _queue_transaction(command: QueueLedgerTransaction, state: State, stamp: Stamp) -> Effects:
    # What would be refused now is refused at once. It is judged again when it is applied.
    apply(command.inner, state, stamp)
    item = BulkItem(request_params=command.request_params, command=command.inner)
    request = CreateBulkRequest(
        action_type="create", resource_type="ledger_transaction", items=(item,)
    )
    return apply(request, state, stamp)


@apply.register
def _apply_queued(command: ApplyQueued, state: State, stamp: Stamp) -> Effects:
    result = _find_result(state, command.id)
    if result.status is not ResultStatus.PENDING:
        return Effects(updated=(result,))
    try:
        effects = apply(command.inner, state, stamp)
    except ApiError as refusal:
        error = BulkError(code=refusal.code, message=refusal.message, parameter=refusal.parameter)
        return _refuse(state, result, error, stamp)
    done = replace(
        result,
        status=ResultStatus.SUCCESSFUL,
        command=None,
        entity_id=_entity_id(command.inner, effects),
        updated_at_us=stamp.at_us,
        seq=stamp.seq,
    )
    # A command that changes nothing returns the row as it is: nothing of it is to be recorded.
    changed = (row for row in effects.updated if row.seq == stamp.seq)
    settled = (done, _counted(state, result, stamp, is_success=True))
    return Effects(inserted=effects.inserted, updated=(*settled, *changed))


def _entity_id(command: Queueable, effects: Effects) -> str:
    """The object that the command names, or the one that it makes."""
    if isinstance(command, CreateLedgerAccount | CreateLedgerTransaction):
        made = effects.inserted[0]
        assert isinstance(made, LedgerAccount | LedgerTransaction)
        return made.id
    return command.id


@apply.register
def _refuse_queued(command: RefuseQueued, state: State, stamp: Stamp) -> Effects:
    result = _find_result(state, command.id)
    if result.status is not ResultStatus.PENDING:
        return Effects(updated=(result,))
    return _refuse(state, result, command.error, stamp)


def _refuse(state: State, result: BulkResult, error: BulkError, stamp: Stamp) -> Effects:
    failed = replace(_failed(result, error), updated_at_us=stamp.at_us, seq=stamp.seq)
    return Effects(updated=(failed, _counted(state, result, stamp, is_success=False)))


def _failed(result: BulkResult, error: BulkError) -> BulkResult:
    return replace(
        result,
        status=ResultStatus.FAILED,
        command=None,
        error_code=error.code,
        error_message=error.message,
        error_parameter=error.parameter,
    )


def _find_result(state: State, id: str) -> BulkResult:
    result = state.row(BulkResult, id)
    if result is None:
        raise NotFound(f"no bulk result {id}")
    return result


def _counted(state: State, result: BulkResult, stamp: Stamp, *, is_success: bool) -> BulkRequest:
    """The result's request with one more row settled."""
    request = state.row(BulkRequest, result.request_id)
    assert request is not None
    assert request.status is not BulkStatus.COMPLETED
    success_count = request.success_count + is_success
    failed_count = request.failed_count + (not is_success)
    return replace(
        request,
        status=_status(request.total_count, success_count + failed_count),
        success_count=success_count,
        failed_count=failed_count,
        updated_at_us=stamp.at_us,
        seq=stamp.seq,
    )


def _status(total: int, settled: int) -> BulkStatus:
    if settled == total:
        return BulkStatus.COMPLETED
    return BulkStatus.PROCESSING if settled else BulkStatus.PENDING
