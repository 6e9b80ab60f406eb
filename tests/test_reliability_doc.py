"""docs/reliability.md is what its sources say: every named test exists, every figure comes from a run."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

from chaos import oracle
from chaos.faults import NAMES

ROOT = Path(__file__).parents[1]
CATALOGUE = tomllib.loads((ROOT / "docs/reliability.toml").read_text(encoding="utf-8"))
FAULTS = 59
"""How many kinds of faults are known from others' queues; after them come their incidents."""
JUDGED_BESIDES = {"not_drained_in_time", "process_ended"}


sys.path.append(str(ROOT / "scripts"))  # its neighbours, as when it is run


def writer():
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "scripts/reliability.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_fault_has_a_test_and_every_test_that_is_named_exists():
    assert [one["number"] for one in CATALOGUE["fault"]] == list(range(1, len(CATALOGUE["fault"]) + 1))
    assert len(CATALOGUE["fault"]) >= FAULTS
    named = {test for one in [*CATALOGUE["fault"], *CATALOGUE["promise"]] for test in one["tests"]}
    assert all(one["tests"] for one in [*CATALOGUE["fault"], *CATALOGUE["promise"]])
    there = set()
    for file in {test.partition("::")[0] for test in named}:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        there |= {f"{file}::{node.name}" for node in tree.body if isinstance(node, kinds)}
    assert named - there == set()


def test_every_fault_has_a_test_that_prints_a_figure():
    silent = [one["number"] for one in CATALOGUE["fault"] if not any(map(says_a_figure, one["tests"]))]
    assert silent == []


def says_a_figure(test: str) -> bool:
    """Whether `say` is called by it, or by what it calls of its own file."""
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    parts = {
        node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    reached, left = set(), [name]
    while left:
        named = {node.id for node in ast.walk(parts[left.pop()]) if isinstance(node, ast.Name)}
        left += sorted((named & parts.keys()) - reached)
        reached |= named
    return "say" in reached


def test_what_the_chaos_bench_judges_and_does_is_all_in_it():
    promised = {one["chaos"] for one in CATALOGUE["promise"]}
    assert promised == (oracle.PROMISES.keys() - {"not_drained"}) | JUDGED_BESIDES
    assert {kind for one in CATALOGUE["fault"] for kind in one.get("chaos", ())} <= set(NAMES)


def test_the_page_is_written_from_its_sources():
    assert (ROOT / "docs/reliability.md").read_text(encoding="utf-8") == writer().document(), "run `make docs`"


def test_figures_come_from_runs_and_what_was_not_run_says_so(tmp_path):
    made = writer()
    without = made.render(CATALOGUE, None, {})
    rows = re.findall(r"^\| \d+ \|.*$", without, re.MULTILINE)
    assert len(rows) == len(CATALOGUE["fault"])
    assert all("| not run |" in row for row in rows)
    test = CATALOGUE["fault"][0]["tests"][0]
    lines = [
        {"test": test, "soak": True, "day": "2026-01-01", "text": "the large one"},
        {"test": test, "soak": False, "day": "2026-01-02", "text": "a small one"},
    ]
    kept = tmp_path / "figures"
    kept.write_text("\n".join(map(json.dumps, lines)))
    figures = made.read_figures(kept)
    assert figures == {test: lines[0]}
    assert "the large one (2026-01-01)" in made.render(CATALOGUE, None, figures)
