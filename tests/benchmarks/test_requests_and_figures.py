"""What the benchmarks compute: requests, percentiles, ratios, tables. Pure; by example."""

import re
from pathlib import Path

import pytest

from benchmarks.http_requests import OneOf, Text, Unique, generator, get, post
from benchmarks.machine import Machine
from benchmarks.percentiles import latency, median, spread
from benchmarks.report import Check, Report, Table
from benchmarks.rounds import interleave, median_ratio
from benchmarks.table import README, fill_readme, render

MACHINE = Machine(
    cpu="a processor",
    cores=2,
    memory_gib=4,
    kernel="6",
    python="3.11",
    postgres="postgres (PostgreSQL) 18",
    flush_us=90,
    load_average=0.1,
    processor_share=1.0,
)


def report(name: str = "router", *, quick: bool = False) -> Report:
    return Report(
        name=name,
        quick=quick,
        at="2026-01-01T00:00:00Z",
        machine=MACHINE,
        tables=[Table(title="Rates", columns=("path", "rate"), rows=[("direct", 12_345)])],
        checks=[
            Check(what="a floor", value=0.7, goal=0.6),
            Check(what="a ceiling", value=0.7, goal=0.6, at_most=True),
        ],
    )


def test_a_post_declares_the_length_of_every_body_it_sends() -> None:
    body = [Text('{"n":"'), Unique(), Text('","a":"'), OneOf(["€", "abc"]), Text('"}')]
    kind = post("post", "/x", [("host", [Text("h")]), ("key", [Text("k-"), Unique()])], body)
    draw = generator(kind)
    for _ in range(3):
        head, _, sent = draw().partition(b"\r\n\r\n")
        declared = re.search(rb"content-length: (\d+)", head)
        assert declared is not None
        assert int(declared[1]) == len(sent)


def test_fragments_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        post("post", "/x", [], [OneOf(["a", "bc"])])


def test_unique_numbers_never_repeat_and_fragments_go_round() -> None:
    draw = generator(get("get", [Text("/"), OneOf(["a", "b"]), Text("/"), Unique()], {"host": "h"}))
    paths = [draw().split()[1] for _ in range(3)]
    assert paths == [b"/a/000000000000", b"/b/000000000001", b"/a/000000000002"]


def test_percentiles_are_latencies_that_occurred() -> None:
    found = latency([0.001 * n for n in range(1, 101)])
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms) == (50, 90, 99, 100)
    assert latency([0.002]).p99_ms == 2
    assert latency([]).max_ms == 0


def test_medians_ratios_and_spread() -> None:
    assert median([3, 1, 2]) == 2
    assert median_ratio([10, 20, 30], [5, 10, 15]) == 2
    assert spread([9, 10, 11]) == pytest.approx(0.2)


def test_rounds_take_every_arm_in_turn() -> None:
    order: list[str] = []
    results = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, lambda _: None
    )
    assert order == ["a", "b", "a", "b"]
    assert [len(each) for each in results.values()] == [2, 2]


def test_a_report_shows_its_table_its_machine_and_what_was_missed() -> None:
    text = render(report())
    assert "| direct | 12,345 |" in text
    assert "2 cores of a processor" in text
    assert "a floor: 0.7 (goal ≥ 0.6): met" in text
    assert "a ceiling: 0.7 (goal ≤ 0.6): **missed**" in text
    assert "smoke run" in render(report(quick=True))


def test_the_readme_is_filled_between_its_markers_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- results:router -->\nold\n<!-- /results:router -->\nb\n")
    assert fill_readme(report(), readme)
    text = readme.read_text()
    assert text.startswith("a\n<!-- results:router -->\n")
    assert text.endswith("<!-- /results:router -->\nb\n")
    assert "old" not in text
    assert fill_readme(report(), readme)
    assert readme.read_text() == text
    assert not fill_readme(report("engine"), readme)


def test_the_readme_has_a_place_for_every_benchmark() -> None:
    text = README.read_text()
    for name in ("engine", "api", "router"):
        assert f"<!-- results:{name} -->\n" in text
        assert f"<!-- /results:{name} -->" in text
