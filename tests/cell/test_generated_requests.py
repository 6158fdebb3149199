"""Method: Schemathesis makes requests of the OpenAPI document, good and bad, always the same ones,
and holds every answer against it: no 5xx, no status, header or body that is not described, nothing
accepted that the document forbids, no access without credentials.

Two checks are told what a schema cannot say. Well-formed requests may be refused: ids are unknown,
entries do not balance, a cursor is of another list. Malformed ones may be refused by any 4xx. Its
plugin for pytest is switched off: every start of every suite would wait for its imports.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from cell_process import Access, CellProcess, running_cell
from hypothesis import HealthCheck, given, settings
from ledger_audit import assert_ledger_holds
from schemathesis.config import SchemathesisConfig
from schemathesis.generation.modes import GenerationMode

from cell.openapi import describe
from cell.routes import ROUTES

EXAMPLES = int(os.environ.get("CLOISTER_GENERATED_EXAMPLES", "4"))
"""Requests of each operation and mode; `make faults` makes many more, which take minutes."""

REFUSALS = ["400", "401", "404", "405", "409", "413", "415", "422"]
CONFIG = SchemathesisConfig.from_dict(
    {
        "generation": {
            "deterministic": True,
            "database": "none",
            "no-shrink": True,
            # Given with each request; other tests leave them out.
            "with-security-parameters": False,
        },
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx", *REFUSALS]},
            "negative_data_rejection": {"expected-statuses": REFUSALS},
        },
    }
)
OPERATIONS = [
    found.ok()
    for found in schemathesis.openapi.from_dict(
        describe(ROUTES), config=CONFIG
    ).get_all_operations()
]


@pytest.fixture(scope="module")
def cell(
    make_cell_database: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CellProcess]:
    """One that has webhooks."""
    with make_cell_database() as database:
        directory = tmp_path_factory.mktemp("cell")
        with running_cell(database, directory, WEBHOOK_SECRET="of the tests") as cell:
            yield cell
        assert_ledger_holds(database.superuser_dsn)


@pytest.fixture
def tenant(cell: CellProcess) -> Access:
    """One for each operation: an idempotency key is answered as it was first, whatever asks."""
    return cell.new_tenant()


def modes(operation: Any) -> list[GenerationMode]:
    """What takes nothing but an id, which may be any text, cannot be asked in a bad way."""
    label = operation.label
    (route,) = (each for each in ROUTES if f"{each.method} {each.path}" == label)
    takes = route.body is not None or route.parameters
    return list(GenerationMode) if takes else [GenerationMode.POSITIVE]


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
        for operation in OPERATIONS
        for mode in modes(operation)
    ],
)
def test_answers_are_as_described(operation: Any, mode: GenerationMode, tenant: Access) -> None:
    @settings(
        derandomize=True,
        database=None,
        max_examples=EXAMPLES,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        credentials = (tenant.organization_id, tenant.api_key)
        case.call_and_validate(base_url=tenant.base_url, auth=credentials, timeout=30)

    ask()
