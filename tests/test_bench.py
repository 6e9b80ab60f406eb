"""The benches' own arithmetic: what a name runs, what a bar says, and the page that is made of what they saved."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/run.py as a module, with the modules beside it."""
    monkeypatch.syspath_prepend(str(BENCH))
    import run

    return run


def test_a_scenario_brings_both_its_sizes_and_what_it_is_held_against(bench):
    assert bench.chosen(["S5"]) == (["S3", "S5", "S5-large"], [])
    assert bench.chosen(["S10", "idle"]) == (["S7A", "S10"], ["idle"])
    scenarios, others = bench.chosen([])
    assert {"S1", "S2", "S3", "S3A", "S4", "S5", "S6", "S7A", "S8", "S9", "S10"} <= set(scenarios)
    assert {"idle", "memory"} <= set(others)
    with pytest.raises(SystemExit, match="'S11' is no bench"):
        bench.chosen(["S11"])


def test_a_bar_is_a_ratio_round_by_round(bench):
    from results import Bar, Record, held, said

    ours = Record("S3", "pgqueue", "drain", runs=[{"rate": 10.0}, {"rate": 90.0}, {"rate": 30.0}])
    theirs = Record("S3", "other", "drain", runs=[{"rate": 20.0}, {"rate": 60.0}, {"rate": 20.0}])
    (found,) = held(
        [Bar("S3", "pgqueue", "S3", "other", 1.2), Bar("S4", "pgqueue", "S4", "other", 1.0)], [ours, theirs]
    )
    assert (found["ratio"], found["met"]) == (1.5, True), "of 0.5, 1.5 and 1.5 the median; S4 did not run"
    assert said(found) == "S3 pgqueue ≥ 1.2 of S3 other: 1.50, met"
    (found,) = held([Bar("S3", "pgqueue", "S3", "other", 1.2, at_most=True)], [ours, theirs])
    assert said(found) == "S3 pgqueue ≤ 1.2 of S3 other: 1.50, NOT MET"


def test_the_page_has_each_figure_with_its_command_and_says_what_was_not_run(bench, tmp_path):
    import performance_page
    from results import Record, load, machine, save

    cost = {"worker_cpu_us": 21.0, "server_cpu_us": 30.0, "wal_bytes": 700, "commits": 0.02, "peak_mib": 66.0}
    records = [
        Record("S3", "pgqueue", "drain", setting="500", runs=[{"rate": rate, **cost} for rate in (1e4, 3e4, 2e4)])
    ]
    peers = [*records, Record("S3", "other", "drain", error="it broke")]
    row = {"what": "idle leader, CPU", "value": "0.5 %", "goal": "< 1 %"}
    save(tmp_path / "own.json", "make bench", machine(), records, bars=[], rows=[row])
    save(
        tmp_path / "peers.json",
        "make bench-peers",
        machine(),
        peers,
        bars=[],
        missing={"third": "npm is not installed"},
    )
    own, others = load(tmp_path / "own.json"), load(tmp_path / "peers.json")
    empty = f"# Page\n\n{performance_page.BEGIN}{performance_page.END}\nthe rest\n"
    text = performance_page.page(empty, own, others)
    assert text.startswith("# Page\n")
    assert text.endswith("\nthe rest\n")
    assert "| S3: drain | pgqueue `500` | 20 000 (10 000 … 30 000) jobs/s | 21 | 30 | 700 | 0.020 | 66 |" in text
    assert 'not run: `make bench ARGS="S9"`' in text
    assert "| idle leader, CPU | 0.5 % | < 1 % |" in text
    assert "| 20 000 (10 000 … 30 000) | failed |" in text
    assert "Not measured: third (npm is not installed)." in text
    assert performance_page.page(text, own, others) == text, "writing it again changes nothing"
    assert performance_page.page(text, None, None).count("not run") == len(performance_page.NAMES) + 3
