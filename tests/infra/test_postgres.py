"""The embedded Postgres, on real servers: start, stop, crash, and every way it can be refused."""

import psycopg

from infra.local.postgres import Postgres


def test_the_server_answers_on_its_socket(postgres: Postgres) -> None:
    with psycopg.connect(postgres.superuser_dsn()) as connection:
        row = connection.execute("select current_user, current_setting('listen_addresses')")
        assert row.fetchone() == ("postgres", "")
