"""Method: the table of bad and odd input once more, now through the router of a whole platform: the
same statuses about the same parameters as from a cell.
"""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

# The table lies beside the cell's tests and asks nothing but the fixture `access`.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "cell"))

from cell_process import Access
from test_robustness import *  # noqa: F403
from test_through_router import CELLS, NUMBERS, control, new_access  # noqa: F401


@pytest.fixture
def access(platform: Any, control: httpx.Client) -> Access:  # noqa: F811
    return new_access(platform, control, CELLS[next(NUMBERS) % 2])
