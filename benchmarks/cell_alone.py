"""A cell by itself: on a Postgres of its own, with one tenant and its books, for any proxy.

As a platform runs it, but for the routers' key: it is to take what HAProxy passes on, too.
"""

import asyncio
import hashlib
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from benchmarks.books import Books, create
from benchmarks.database import running_postgres
from benchmarks.server_process import Server, free_address, python_module
from cell.schema import ROLES, create_roles_and_database, migrate

DATABASE: Final = "cell"
REQUEST_S_MAX: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellAlone:
    server: Server
    organization: str
    books: Books


@contextmanager
def running_cell(directory: Path) -> Iterator[CellAlone]:
    with running_postgres("cell", directory / "pg", ROLES, slow_flush=False) as postgres:
        superuser_dsn = postgres.superuser_dsn()
        asyncio.run(create_roles_and_database(superuser_dsn, DATABASE, postgres.passwords))
        asyncio.run(migrate(postgres.dsn("cloister_owner", DATABASE)))
        operator, token = free_address(), secrets.token_urlsafe(32)
        server = Server(
            "cell",
            python_module("cell"),
            address=(listen := free_address()),
            directory=directory,
            environment={
                "CLOISTER_CELL_NAME": "alone",
                "CLOISTER_CELL_LISTEN": listen,
                "CLOISTER_CELL_OPERATOR_LISTEN": operator,
                "CLOISTER_CELL_OPERATOR_TOKEN": token,
                "CLOISTER_CELL_WRITER_DSN": postgres.dsn("cloister_writer", DATABASE),
                "CLOISTER_CELL_READER_DSN": postgres.dsn("cloister_reader", DATABASE),
            },
            health_url=f"http://{operator}/healthz",
        )
        with server:
            organization, api_key = str(uuid.uuid4()), f"ck_{secrets.token_urlsafe(32)}"
            place_tenant(f"http://{operator}", token, organization, api_key)
            books = asyncio.run(create(listen, organization, api_key))
            yield CellAlone(server=server, organization=organization, books=books)


def place_tenant(operator: str, token: str, organization: str, api_key: str) -> None:
    """As the control plane does it."""
    digest = hashlib.sha256(api_key.encode()).hexdigest()
    path = f"/operator/tenants/{organization}"
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=operator, headers=headers, timeout=REQUEST_S_MAX) as client:
        client.put(path, json={"epoch": 1}).raise_for_status()
        client.put(f"{path}/keys/{uuid.uuid4()}", json={"sha256": digest}).raise_for_status()
