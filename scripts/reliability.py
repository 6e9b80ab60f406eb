"""Writes docs/reliability.md: promise, mechanism, test, figure, command. `--check` compares instead.

From docs/reliability.toml, which names mechanisms and tests; from docs/chaos.json and docs/bloat.json, the reports that
`make chaos ARGS=--write-docs` and `python bench/bloat.py --write-docs` leave; and from docs/figures.jsonl, the lines of
figures that tests leave with PGQUEUE_TEST_FIGURES. What was not run says so.
"""

from __future__ import annotations

import ast
import functools
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from generated import keep

DOCS = Path(__file__).parents[1] / "docs"
TARGET = DOCS / "reliability.md"
CATALOGUE = DOCS / "reliability.toml"
NOT_RUN = "not run"
HEAD = """# Reliability

What is promised, by what mechanism, which test shows it, what was measured, and the command that does it again. Written
by `make docs` from the reports of runs; a figure that no run has given reads "not run". `make chaos ARGS=--write-docs`
keeps a report; with `PGQUEUE_TEST_FIGURES=docs/figures.jsonl` before it `make test` or `make soak` keeps what the tests
print.

Effects of handlers outside of the database are at least once: a handler may have done its work, and its worker died
before the completion.
"""
CHAOS = """
## Under random faults

`make chaos` starts dispatchers and workers, each behind a proxy of its own, and a durable server; enqueues jobs with
retries, limits, unique keys, schedules and dependencies; and every two seconds does one thing of the list below to
somebody. Triggers note each move of each job in the transaction that makes it, handlers write their effects on a
connection of their own, and in the end `tests/chaos/oracle.sql` counts what breaks a promise.
"""


BLOAT = """
## Beside a transaction that is held open

Vacuum can remove nothing that died since a snapshot was taken that somebody still holds. `python bench/bloat.py` holds
one for the middle third of its time, and then looks at the size of the history over days.

"""


def render(
    catalogue: dict[str, Any],
    chaos: dict[str, Any] | None,
    figures: dict[str, dict[str, Any]],
    bloat: dict[str, Any] | None = None,
) -> str:
    """The whole document."""
    parts = [HEAD, CHAOS, *_told(chaos)]
    rows = [_promise(one, chaos) for one in catalogue["promise"]]
    parts.append(_table(("promise", "mechanism", "test", "breaches", "command"), rows))
    parts.append("\n### What happened, and how soon it was over\n\n")
    if chaos is None:
        parts.append(f"{NOT_RUN.capitalize()}: `make chaos ARGS=--write-docs`.\n")
    else:
        happened = [
            (f"`{one['fault']}`", str(one["count"]), _seconds(one["worst_recovery"]), _seconds(one["worst_release"]))
            for one in chaos["faults"]
        ]
        parts.append(_table(("fault", "times", "next job done, worst", "the victim's runs over, worst"), happened))
    parts.append(BLOAT + _size(bloat))
    parts.append("\n## Fault by fault\n")
    for section in dict.fromkeys(one["section"] for one in catalogue["fault"]):
        faults = [_fault(one, chaos, figures) for one in catalogue["fault"] if one["section"] == section]
        parts.append(f"\n### {section}\n\n" + _table(("", "fault", "mechanism", "test", "figure", "command"), faults))
    return "".join(parts)


def _size(bloat: dict[str, Any] | None) -> str:
    if bloat is None:
        return f"{NOT_RUN.capitalize()}: `python bench/bloat.py --write-docs`.\n"
    found = bloat["found"]
    rows = [
        ("jobs/s, median of the first third", f"{found['usual']:.0f}"),
        ("lowest while it is held, of that", f"{found['lowest_while_held']:.0%}"),
        ("p99 from enqueue to start: usual, worst while held", f"{found['p99_usual']} s, {found['p99_while_held']} s"),
        ("most dead rows", f"{found['most_dead']:.0f}"),
        ("as fast and as clean as before, after its end", f"{found['seconds_until_recovered']:.0f} s"),
        ("history of the last day, of the first with as many days kept", f"{found['history_growth']:.2f}"),
    ]
    run = f"The run of {bloat['began']} ({bloat['machine']}): {bloat['minutes']:g} min at {bloat['rate']:g} jobs/s.\n\n"
    return run + _table(("what", "figure"), rows) + "\n![jobs a second, p99 and dead rows over time](bloat.svg)\n"


def _told(chaos: dict[str, Any] | None) -> list[str]:
    if chaos is None:
        return [f"\n{NOT_RUN.capitalize()}.\n\n"]
    plan, latency = chaos["plan"], chaos["latency"]
    text = (
        f"\nThe run of {chaos['began'][:10]} ({chaos['machine']}; seed {plan['seed']}): {plan['seconds']:g} s, "
        f"{chaos['faults_in_all']} faults, {chaos['jobs']} jobs ({chaos['enqueued_a_second']:g} enqueued a second, "
        f"{plan['rate']:g} were due), "
        f"{chaos['dispatches']} dispatches, {chaos['epochs']} epochs.\n"
        f"{chaos['stale_completions_rejected']} completions came too late and changed nothing; "
        f"{chaos['stale_leader_writes_refused']} writes of former leaders were refused.\n"
        f"While {plan['rate'] * 10:g} jobs wait nothing is enqueued: how much a machine bears is not the question.\n"
        f"From enqueue to start: p50 {latency['p50']:.3f} s, p99 {latency['p99']:.2f} s, through all faults. "
        f"After the last fault the backlog was gone in {chaos['drained_after']:g} s.\n\n"
    )
    return [text]


def _promise(one: dict[str, Any], chaos: dict[str, Any] | None) -> tuple[str, ...]:
    breaches = NOT_RUN if chaos is None else f"{chaos['breaches'][one['chaos']]}"
    return one["promise"], one["mechanism"], _tests(one["tests"]), breaches, "`make chaos`"


def _fault(one: dict[str, Any], chaos: dict[str, Any] | None, figures: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    found = [
        f"{kept['text']} ({kept['day']}{', small counts' if not kept['soak'] and _has_counts(test) else ''})"
        for test, kept in ((test, figures.get(test)) for test in one["tests"])
        if kept is not None
    ]
    if chaos is not None:
        for kind in one.get("chaos", ()):
            happened = next(row for row in chaos["faults"] if row["fault"] == kind)
            done = _seconds(happened["worst_recovery"])
            found.append(f"chaos: {kind} x{happened['count']}, next job done after {done}")
    return (
        str(one["number"]),
        one["fault"],
        one["mechanism"],
        _tests(one["tests"]),
        "; ".join(_cell(text) for text in found) or NOT_RUN,
        _command(one["tests"]),
    )


def _command(tests: list[str]) -> str:
    """What runs them, at their full counts where they have such."""
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    full = any(map(_has_counts, tests))
    return f'`make {"soak" if full else "test"} ARGS="{" ".join(f"tests/{file}" for file in files)}"`'


def _has_counts(test: str) -> bool:
    """Whether it has full counts besides its small ones."""
    file, _, name = test.partition("::")
    return name in _with_counts(file)


@functools.cache
def _with_counts(file: str) -> frozenset[str]:
    """The tests of a file that are marked soak."""
    tree = ast.parse((DOCS.parent / "tests" / file).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return frozenset(
        one.name for one in functions if any("mark.soak" in ast.unparse(mark) for mark in one.decorator_list)
    )


def _tests(names: list[str]) -> str:
    return "<br>".join(f"`{name.partition('::')[2]}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:g} s"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read_figures(path: Path) -> dict[str, dict[str, Any]]:
    """The newest line of each test; one of full counts before one of small."""
    kept: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            if one["soak"] or not kept.get(one["test"], one)["soak"]:
                kept[one["test"]] = one
    return kept


def document() -> str:
    """What docs/reliability.md should be now."""
    chaos, bloat = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        for path in (DOCS / "chaos.json", DOCS / "bloat.json")
    )
    catalogue = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return render(catalogue, chaos, read_figures(DOCS / "figures.jsonl"), bloat)


if __name__ == "__main__":
    sys.exit(keep(TARGET, document(), "what it is written from"))
