"""Fixtures for every suite: one real Postgres for the session, fresh databases for tests."""

from collections.abc import Iterator

import pytest

from infra.local.binaries import find_binaries
from infra.local.postgres import Postgres, Sizing

CELL_ROLES = ("cloister_owner", "cloister_writer", "cloister_reader", "cloister_auditor")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A running embedded Postgres with its durability left on; databases are the tests' own."""
    instance = Postgres(
        name="tests",
        directory=tmp_path_factory.mktemp("postgres") / "instance",
        binaries=find_binaries(),
        roles=CELL_ROLES,
        sizing=Sizing(shared_buffers="64MB", max_connections=100),
    )
    instance.initialize()
    instance.start()
    yield instance
    instance.stop()
