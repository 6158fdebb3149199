"""From credentials to a cell, with the control plane present, absent, or not to be believed.

Method: pure tables for credentials and for which tables are refused; then routers that follow a
real HTTP server, lose it, start without it, and are offered what they must not take.
"""

import base64
import socket
from pathlib import Path

import msgspec
import pytest
from conftest import Platform
from router_cells import EchoCell, serving
from router_clients import Client, basic, request
from router_running import RunningRouter, await_endings, table, wait_until, whole

from control_plane.routing import (
    CellName,
    OrganizationId,
    RoutingChange,
    RoutingTable,
    TenantLimits,
)
from router.credentials import organization_of
from router.errors import InvalidCredentials
from router.routing_table import refusal_of
from router.table_file import TableFile


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@pytest.mark.parametrize(
    ("value", "organization"),
    [
        (f"Basic {encoded('org:key')}", "org"),
        (f"basic {encoded('org:key')}", "org"),
        (f"Basic   {encoded('org:key')} ", "org"),
        (f"Basic {encoded('org:')}", "org"),
        (f"Basic {encoded('org:k:e:y')}", "org"),
        (f"Basic {encoded(':key')}", None),
        (f"Basic {encoded('org')}", None),
        (f"Basic {encoded('')}", None),
        ("Basic", None),
        ("", None),
        ("Basic !!!!", None),
        ("Basic b3JnOmtleQ", None),
        (f"Basic {encoded('org:key')} x", None),
        (f"Bearer {encoded('org:key')}", None),
        (f"Basic {encoded('orgé:key')}", None),
        (f"Basic {encoded(b'org' + bytes((0xFF,)) + b':key')}", None),
        (f"Basic {encoded('x' * 128 + ':key')}", "x" * 128),
        (f"Basic {encoded('x' * 129 + ':key')}", None),
    ],
)
def test_organization_of(value: str, organization: str | None) -> None:
    assert organization_of(value.encode()) == organization


CURRENT = table(7, {"t": ("a", 3), "u": ("b", 1)}, {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (whole(8, {"t": ("b", 4)}, {"a": 1, "b": 2}), None),
        (whole(8, {"t": ("a", 3), "v": ("a", 1)}, {"a": 9}), None),
        (whole(7, {"t": ("a", 3)}, {"a": 1}), None),
        (whole(6, {"t": ("a", 3)}, {"a": 1}), "version 6 is lower than 7"),
        (whole(8, {"t": ("a", 2)}, {"a": 1}), "epoch 2 of tenant t is lower than 3"),
        (whole(8, {"t": ("c", 4)}, {"a": 1}), "placed on c, which the table does not know"),
        (whole(8, {}, {"a": "nowhere"}), "cell a: 'nowhere' is not host:port"),
        (whole(8, {}, {"a": "host:99999"}), "is not host:port"),
    ],
)
def test_refusal_of_a_table(candidate: RoutingChange, words: str | None) -> None:
    refusal = refusal_of(CURRENT, candidate, 25)
    assert (refusal is None) if words is None else (words in (refusal or ""))


def test_first_table_is_judged_by_itself() -> None:
    assert refusal_of(None, whole(0, {}, {}), 25) is None
    assert refusal_of(None, whole(1, {"t": ("c", 1)}, {}), 25) is not None


def many(
    version: int, moved: int, gone: int = 0, *, evacuating: str | None = None
) -> RoutingChange:
    """A hundred tenants of cell a, less those gone, some of them moved to b."""
    placed = {str(i): ("b", 2) if i < moved else ("a", 1) for i in range(100 - gone)}
    plain = whole(version, placed, {"a": 1, "b": 2})
    leaving = () if evacuating is None else (evacuating,)
    return msgspec.structs.replace(plain, evacuating=leaving)


@pytest.mark.parametrize(
    ("candidate", "percent", "refused"),
    [
        (many(2, 25), 25, False),
        (many(2, 26), 25, True),
        (many(2, 0, gone=26), 25, True),
        (many(2, 13, gone=13), 25, True),
        (many(2, 16), 1, False),
        (many(2, 17), 1, True),
        (many(2, 100), 100, False),
        (many(2, 100, evacuating="a"), 25, False),
        (many(2, 100, evacuating="b"), 25, True),
    ],
)
def test_table_that_repoints_too_many_is_refused(
    candidate: RoutingChange, percent: int, refused: bool
) -> None:
    refusal = refusal_of(many(1, 0).apply_to(None), candidate, percent)
    assert (refusal is not None) is refused
    assert not refused or "re-pointed" in (refusal or "")


def test_tenants_of_a_small_platform_may_all_move() -> None:
    before = table(1, {"t": ("a", 1), "u": ("a", 1)}, {"a": 1, "b": 2})
    after = whole(2, {"t": ("b", 2), "u": ("b", 2)}, {"a": 1, "b": 2})
    assert refusal_of(before, after, 25) is None


# -- who is asking


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "Authorization: Basic\r\n",
        "Authorization: Basic %%%\r\n",
        "Authorization: Bearer abc\r\n",
        f"Authorization: {basic('nobody')}\r\n",
        f"Authorization: {basic('TENANT-A')}\r\n",
    ],
)
def test_unknown_is_401(cell: EchoCell, client: Client, headers: str) -> None:
    answer = client.ask(request("POST", tenant=None, headers=headers, body=b"{}"))
    assert (answer.status, answer.code) == (401, "invalid_key")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert cell.seen == []
    assert client.ask(request()).status == 200


def test_no_part_of_the_credentials_is_in_an_error(client: Client) -> None:
    answer = client.ask(
        request(tenant=None, headers=f"Authorization: {basic('nobody', 'ck_very_secret')}\r\n")
    )
    assert b"nobody" not in answer.body and b"secret" not in answer.body


def test_two_tenants_reach_two_cells_by_one_address(platform: Platform) -> None:
    (one, one_port), (two, two_port) = platform.echo_cell("cell-a"), platform.echo_cell("cell-b")
    platform.publish(
        1,
        {"tenant-a": ("cell-a", 1), "tenant-b": ("cell-b", 5)},
        {"cell-a": one_port, "cell-b": two_port},
    )
    client = platform.client(platform.router())
    for _ in range(3):
        assert client.ask(request(tenant="tenant-a")).json["cell"] == "cell-a"
        assert client.ask(request(tenant="tenant-b")).json["cell"] == "cell-b"
    assert {(s.header("cloister-tenant"), s.header("cloister-epoch")) for s in one.seen} == {
        ("tenant-a", "1")
    }
    assert {(s.header("cloister-tenant"), s.header("cloister-epoch")) for s in two.seen} == {
        ("tenant-b", "5")
    }


# -- the table


def test_change_of_placement_reaches_the_router_at_once(platform: Platform) -> None:
    (_, one), (_, two) = platform.echo_cell("cell-a"), platform.echo_cell("cell-b")
    cells: dict[str, int | str] = {"cell-a": one, "cell-b": two}
    platform.publish(1, {"tenant-a": ("cell-a", 1)}, cells)
    router = platform.router(poll_wait_ms=20_000)
    client = platform.client(router)
    assert client.ask(request()).json["cell"] == "cell-a"
    platform.publish(2, {"tenant-a": ("cell-b", 2), "tenant-b": ("cell-a", 1)}, cells)
    wait_until(lambda: router.router.routes.version == 2, "the new table", deadline_s=15)
    assert client.ask(request()).json["cell"] == "cell-b"
    assert client.ask(request(tenant="tenant-b")).json["cell"] == "cell-a"
    platform.publish(3, {"tenant-b": ("cell-a", 1)}, cells)
    wait_until(lambda: router.router.routes.version == 3, "the new table", deadline_s=15)
    assert client.ask(request()).status == 401


def test_cell_that_changes_its_address_is_followed(platform: Platform) -> None:
    (_, before), (after, port) = platform.echo_cell(), platform.echo_cell()
    platform.route_all_to(before)
    router = platform.router()
    client = platform.client(router)
    assert client.ask(request()).status == 200
    platform.route_all_to(port, version=2)
    wait_until(lambda: router.router.routes.version == 2, "the new table")
    assert client.ask(request()).status == 200
    assert len(after.seen) == 1


def test_cell_on_this_machine_is_reached_by_its_socket(platform: Platform, tmp_path: Path) -> None:
    (by_address, port), path = platform.echo_cell(), tmp_path / "cell-a.sock"
    by_socket, _ = platform.echo_cell(uds=str(path))
    platform.route_all_to(port)
    client = platform.client(platform.router(cell_sockets=tmp_path))
    assert client.ask(request(method="POST", body=b"{}")).status == 201
    assert (len(by_socket.seen), len(by_address.seen)) == (1, 0)


@pytest.mark.parametrize("is_left_behind", [False, True])
def test_cell_without_a_socket_is_reached_by_its_address(
    platform: Platform, tmp_path: Path, is_left_behind: bool
) -> None:
    cell, port = platform.echo_cell()
    if is_left_behind:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "cell-a.sock"))
    platform.route_all_to(port)
    router = platform.router(cell_sockets=tmp_path)
    assert platform.client(router).ask(request()).status == 200
    assert len(cell.seen) == 1
    assert router.metric('cloister_router_losses_total{cause="connect",cell="cell-a"}') == 0


def test_without_any_table_all_is_503(platform: Platform) -> None:
    router = platform.router(ready=False)
    wait_until(lambda: platform.control.polls, "the router to ask")
    answer = platform.client(router).ask(request())
    assert (answer.status, answer.code) == (503, "no_routing_table")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")
    assert platform.client(router).ask(request(tenant=None)).status == 401
    status, body = router.get("/healthz")
    assert status == 503 and b"no routing table" in body
    assert platform.control.asked_after[0] is None


def test_stale_table_serves_whom_it_knows(platform: Platform) -> None:
    """The control plane away: known tenants are served, unknown ones told to come back."""
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    with serving(platform.control.app) as control:
        control_url = f"http://127.0.0.1:{control.port}"
        router = platform.router(control_url=control_url)
        client = platform.client(router)
        assert client.ask(request(tenant="nobody")).status == 401
    wait_until(lambda: not router.router.routes.is_fresh, "the table to be stale")
    assert client.ask(request()).status == 200
    answer = client.ask(request(tenant="nobody"))
    assert (answer.status, answer.code) == (503, "tenant_unresolved")
    assert answer.headers["retry-after"] == "1"
    assert client.ask(request(tenant=None)).status == 401
    assert router.get("/healthz")[0] == 200
    assert router.metric("cloister_router_routing_fresh") == 0
    await_endings()
    with serving(platform.control.app, port=control.port):
        wait_until(lambda: router.router.routes.is_fresh, "the control plane to be found again")
        assert client.ask(request(tenant="nobody")).status == 401


def test_control_plane_that_hangs_makes_the_table_stale(platform: Platform) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router(fresh_ms_max=200, poll_wait_ms=5_000)
    wait_until(lambda: not router.router.routes.is_fresh, "the table to be stale")
    assert platform.client(router).ask(request()).status == 200


@pytest.mark.parametrize(
    "older",
    [
        table(4, {"tenant-a": ("cell-b", 9)}, {"cell-b": 1}),
        table(6, {"tenant-a": ("cell-b", 1)}, {"cell-b": 1}),
    ],
    ids=["version", "epoch"],
)
def test_control_plane_from_an_older_backup_is_not_believed(
    platform: Platform, older: RoutingTable
) -> None:
    _, port = platform.echo_cell()
    platform.publish(5, {"tenant-a": ("cell-a", 2)}, {"cell-a": port})
    router = platform.router()
    platform.control.ignores_after = True
    platform.control.table = older
    wait_until(lambda: router.metric('cloister_router_polls_total{outcome="failed"}'), "refusal")
    client = platform.client(router)
    assert client.ask(request()).json["cell"] == "cell-a"
    assert router.router.routes.version == 5
    assert client.ask(request(tenant="nobody")).status == 503


def test_wrong_token_and_nonsense_change_nothing(platform: Platform) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router(ready=False, token="wrong")
    wait_until(lambda: router.metric('cloister_router_polls_total{outcome="failed"}'), "refusal")
    assert platform.client(router).ask(request()).code == "no_routing_table"


# -- what changed since


def changed(
    since: RoutingTable, placed: dict[str, tuple[str, int]], **more: object
) -> RoutingChange:
    """The next version, in which these tenants are placed anew."""
    part = table(since.version + 1, placed, {})
    change = RoutingChange(
        version=part.version, cells=since.cells, tenants=part.tenants, since=since.version
    )
    return msgspec.structs.replace(change, **more)


def test_a_change_is_judged_as_the_table_it_makes() -> None:
    before = many(1, 0).apply_to(None)
    for placed, words in (
        ({"1": ("b", 2)}, None),
        ({"new": ("b", 1)}, None),
        ({"1": ("a", 0)}, "epoch 0 of tenant 1 is lower"),
        ({"1": ("c", 2)}, "placed on c"),
        ({str(i): ("b", 2) for i in range(26)}, "re-pointed"),
    ):
        change = changed(before, placed)
        refusal = refusal_of(before, change, 25)
        assert (refusal is None) if words is None else (words in (refusal or ""))
    away = changed(before, {}, cells={CellName("b"): before.cells[CellName("b")]})
    refusal = refusal_of(before, away, 25)
    assert refusal is not None
    assert "placed on a" in refusal


def test_changes_are_followed_and_kept_on_disk(platform: Platform, tmp_path: Path) -> None:
    (_, port_a), (_, port_b) = platform.echo_cell("cell-a"), platform.echo_cell("cell-b")
    names = ("tenant-a", "tenant-b")
    cells: dict[str, int | str] = {"cell-a": port_a, "cell-b": port_b}
    first = table(1, {name: ("cell-a", 1) for name in names}, cells)
    platform.control.table, file = first, tmp_path / "table"
    router = platform.router(table_file=file)
    client = platform.client(router)
    kept = router.router.routes.route_of(OrganizationId("tenant-b"))
    moved = changed(first, {"tenant-a": ("cell-b", 2)}, mark="drawn")
    platform.control.table = moved
    wait_until(lambda: router.router.routes.version == 2, "the change")
    assert client.ask(request(tenant="tenant-a")).json["cell"] == "cell-b"
    assert client.ask(request(tenant="tenant-b")).json["cell"] == "cell-a"
    assert router.router.routes.route_of(OrganizationId("tenant-b")) is kept
    limits = {OrganizationId("tenant-b"): TenantLimits(in_flight=7)}
    limited = changed(moved.apply_to(first), {"tenant-b": ("cell-a", 1)}, limits=limits)
    platform.control.table = limited
    wait_until(lambda: router.router.routes.version == 3, "the limits")
    assert router.router.routes.route_of(OrganizationId("tenant-b")).traffic.in_flight_max == 7
    stored = TableFile(file)
    wait_until(lambda: (found := stored.load()[0]) and found.version == 3, "the disk copy")
    router.stop()
    again = platform.router(ready=False, table_file=file, control_url="http://127.0.0.1:1")
    client = platform.client(again)
    assert client.ask(request(tenant="tenant-a")).json["cell"] == "cell-b"
    assert again.router.routes.table == limited.apply_to(first)


def test_a_router_says_what_it_has(platform: Platform) -> None:
    platform.route_all_to(platform.echo_cell()[1])
    marked = msgspec.structs.replace(platform.control.table, mark="drawn")
    platform.control.table = marked
    platform.router()
    wait_until(lambda: len(platform.control.asked_after) > 1, "the poll after the table")
    assert platform.control.asked_after[1] == "1"
    assert platform.control.asked_marks[:2] == [None, "drawn"]


def test_a_change_of_another_table_is_refused(platform: Platform) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router()
    ahead = table(5, {"tenant-a": ("cell-a", 1)}, {"cell-a": port})
    platform.control.table = changed(ahead, {"tenant-a": ("cell-a", 2)})
    wait_until(lambda: router.metric('cloister_router_polls_total{outcome="failed"}'), "refusal")
    assert router.router.routes.version == 1
    older = msgspec.structs.replace(platform.control.table, since=1, version=0)
    platform.control.table, platform.control.ignores_after = older, True
    failed = router.metric('cloister_router_polls_total{outcome="failed"}')
    wait_until(
        lambda: router.metric('cloister_router_polls_total{outcome="failed"}') > failed, "refusal"
    )
    assert platform.client(router).ask(request()).status == 200


# -- from disk


def test_router_starts_from_disk_while_the_control_plane_is_dead(
    platform: Platform, tmp_path: Path
) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    file = tmp_path / "table"
    first = platform.router(table_file=file)
    wait_until(file.exists, "the disk copy")
    assert file.stat().st_mode & 0o777 == 0o600
    first.stop()
    router = platform.router(ready=False, table_file=file, control_url="http://127.0.0.1:1")
    client = platform.client(router)
    assert client.ask(request()).status == 200
    assert client.ask(request(tenant="nobody")).code == "tenant_unresolved"
    assert router.get("/healthz")[0] == 200


def test_table_that_repoints_too_many_is_served_around(platform: Platform) -> None:
    """The one before stays, the refusal is seen; marked as an evacuation it is taken."""
    _, port = platform.echo_cell()
    _, other = platform.echo_cell("cell-b")
    cells: dict[str, int | str] = {"cell-a": port, "cell-b": other}
    names = ["tenant-a", *(f"tenant-{i}" for i in range(99))]
    platform.publish(1, {name: ("cell-a", 1) for name in names}, cells)
    router = platform.router()
    client = platform.client(router)
    platform.publish(2, {name: ("cell-b", 2) for name in names}, cells)
    wait_until(lambda: router.metric('cloister_router_polls_total{outcome="failed"}'), "refusal")
    assert client.ask(request()).json["cell"] == "cell-a"
    marked = msgspec.structs.replace(platform.control.table, version=3, evacuating=("cell-a",))
    platform.control.table = marked
    wait_until(lambda: router.router.routes.version == 3, "the evacuation", 15)
    assert client.ask(request()).json["cell"] == "cell-b"


def test_epochs_on_disk_are_not_gone_below(platform: Platform, tmp_path: Path) -> None:
    """A catalog restored from a backup, with versions counted on beyond those of the copy."""
    _, port = platform.echo_cell()
    platform.publish(5, {"tenant-a": ("cell-a", 3)}, {"cell-a": port})
    file = tmp_path / "table"
    first = platform.router(table_file=file)
    wait_until(file.exists, "the disk copy")
    first.stop()
    platform.publish(9, {"tenant-a": ("cell-b", 2)}, {"cell-a": port, "cell-b": 1})
    again = platform.router(ready=False, table_file=file)
    wait_until(lambda: again.metric('cloister_router_polls_total{outcome="failed"}'), "refusal")
    assert platform.client(again).ask(request()).json["cell"] == "cell-a"


def test_table_from_disk_is_replaced_by_a_newer_one_only(
    platform: Platform, tmp_path: Path
) -> None:
    _, port = platform.echo_cell()
    platform.publish(5, {"tenant-a": ("cell-a", 1)}, {"cell-a": port})
    file = tmp_path / "table"
    platform.router(table_file=file).stop()
    platform.control.ignores_after = True
    platform.publish(4, {}, {})
    again = platform.router(ready=False, table_file=file)
    wait_until(lambda: again.metric('cloister_router_polls_total{outcome="failed"}'), "refusal")
    assert again.router.routes.version == 5
    platform.publish(6, {"tenant-a": ("cell-a", 1)}, {"cell-a": port})
    wait_until(lambda: again.router.routes.version == 6, "the newer table")


def test_credentials_of_another_tenant_on_one_connection_route_anew(platform: Platform) -> None:
    """What a connection remembers of its last request must not outlive the credentials."""
    (one, port_1), (two, port_2) = platform.echo_cell("cell-a"), platform.echo_cell("cell-b")
    platform.publish(
        1,
        {"tenant-a": ("cell-a", 1), "tenant-b": ("cell-b", 1)},
        {"cell-a": port_1, "cell-b": port_2},
    )
    client = platform.client(platform.router())
    for tenant, key in (
        *(("tenant-a", "k1"), ("tenant-a", "k1"), ("tenant-b", "k1"), ("tenant-b", "k2")),
        *(("tenant-a", "k1"), ("tenant-a", "k2"), ("tenant-a", "k1"), ("tenant-b", "k2")),
    ):
        headers = f"Authorization: {basic(tenant, key)}\r\n"
        answer = client.ask(request(tenant=None, headers=headers))
        assert answer.json["cell"] == {"tenant-a": "cell-a", "tenant-b": "cell-b"}[tenant]
        seen = (one if tenant == "tenant-a" else two).seen[-1]
        assert seen.header("authorization") == basic(tenant, key)
        assert seen.header("cloister-tenant") == tenant


def test_every_refusal_of_credentials_is_retryable_by_nobody() -> None:
    assert InvalidCredentials("x").retryable is False


def test_pools_of_cells_that_stay_are_kept(platform: Platform, router: RunningRouter) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    running = platform.router()
    client = platform.client(running)
    client.ask(request())
    pool = running.router.routes.pools[0]
    platform.publish(2, {"tenant-a": ("cell-a", 1)}, {"cell-a": port, "cell-b": 1})
    wait_until(lambda: running.router.routes.version == 2, "the new table")
    assert running.router.routes.pools[0] is pool
    assert pool.open_connections == 1
