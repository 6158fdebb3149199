"""Method: the acceptance scenarios once more, now through the router of a whole platform: each with
a tenant made over the control plane's API, on one cell and the other in turn, one address for all,
by the synchronous SDK and by the asynchronous one.
"""

import contextlib
import itertools
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from modern_treasury import NotFoundError

# The scenarios lie beside the cell's tests and ask nothing but the fixture `access`.
sys.path.insert(0, str(Path(__file__).parents[1] / "cell"))

from blocking_sdk import BlockingClient
from cell_process import DEADLINE_S, Access, OnRequest
from test_bulk_scenarios import *  # noqa: F403
from test_category_scenarios import *  # noqa: F403
from test_cut_scenarios import *  # noqa: F403
from test_guide_scenarios import *  # noqa: F403
from test_inference_scenarios import *  # noqa: F403
from test_scenarios import *  # noqa: F403
from test_scenarios import Books, new_books
from test_scenarios_events import *  # noqa: F403
from test_sdk_scenarios import *  # noqa: F403
from test_settlement_scenarios import *  # noqa: F403
from test_time_scenarios import *  # noqa: F403
from test_transaction_scenarios import *  # noqa: F403
from test_tutorial_scenarios import *  # noqa: F403

CELLS = ("cell-a", "cell-b")
NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def control(platform: Any) -> Iterator[httpx.Client]:
    """The control plane's API, as an operator."""
    address = platform.ready["control_plane"].removeprefix("http://").replace(":", "_")
    token = platform.home / "config" / "cloister" / "tokens" / address
    with httpx.Client(
        base_url=platform.ready["control_plane"],
        headers={"authorization": f"Bearer {token.read_text().strip()}"},
        trust_env=False,
        verify=False,
        timeout=60,
    ) as client:
        yield client


class AsyncAccess(Access):
    """Its SDK is the asynchronous one."""

    def sdk(
        self, *, strict: bool = True, on_request: OnRequest | None = None, **options: Any
    ) -> Any:
        return BlockingClient(
            DEADLINE_S,
            on_request,
            organization_id=self.organization_id,
            base_url=self.base_url,
            _strict_response_validation=strict,
            **{"api_key": self.api_key, **options},
        )


def new_access(
    platform: Any, control: httpx.Client, cell: str, kind: type[Access] = Access
) -> Access:
    # Whatever else is made on this platform, by other modules with numbers of their own.
    slug = f"scenario-{uuid.uuid4()}"
    created = create(control, "/v1/tenants", {"slug": slug, "cell": cell})
    second = create(control, f"/v1/tenants/{slug}/keys", None)
    assert created.json()["cell"] == cell
    return kind(
        base_url=platform.ready["router"],
        organization_id=created.json()["organization_id"],
        api_key=created.json()["api_key"],
        other_api_key=second.json()["api_key"],
    )


def create(control: httpx.Client, path: str, body: Any) -> httpx.Response:
    """As long as a busy cell has no time for it, it is asked again; so would an operator."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        created = control.post(path, json=body)
        if created.status_code != 503 or time.monotonic() > deadline_s:
            assert created.status_code == 201, created.text
            return created


@pytest.fixture(params=[Access, AsyncAccess], ids=["sync", "async"])
def access(platform: Any, control: httpx.Client, request: pytest.FixtureRequest) -> Access:
    return new_access(platform, control, CELLS[next(NUMBERS) % 2], request.param)


@pytest.fixture
def other_access(platform: Any, control: httpx.Client) -> Access:
    """Another tenant, of the same cell as the one before or of the other."""
    return new_access(platform, control, CELLS[next(NUMBERS) % 2])


def test_two_cells_behind_one_address(platform: Any, control: httpx.Client) -> None:
    with contextlib.ExitStack() as stack:
        first, second = (
            new_books(stack.enter_context(new_access(platform, control, cell).sdk()))
            for cell in CELLS
        )
        must_not_meet(first, second)


def must_not_meet(first: Books, second: Books) -> None:
    first.deposit(700)
    second.deposit(900)
    assert first.balances(first.alice) == (700, 700, 700)
    assert second.balances(second.alice) == (900, 900, 900)
    # What lives in the other cell answers as if it had never been.
    for mine, theirs in ((first, second), (second, first)):
        with pytest.raises(NotFoundError):
            mine.client.ledger_accounts.retrieve(theirs.alice)
        with pytest.raises(NotFoundError):
            mine.write(
                {"ledger_account_id": mine.cash, "direction": "debit", "amount": 1},
                {"ledger_account_id": theirs.alice, "direction": "credit", "amount": 1},
            )
