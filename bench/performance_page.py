"""Writes docs/performance.md's figures, between its marks, from what the benches saved: `make bench-docs`.

`bench/figures/pgqueue.json` is from `make bench`, `bench/figures/peers.json` from `make bench-peers`, each with
`--json`. What neither has is said to be not run. `--check` only says whether the page is up to date.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import Record, load, machine_line, number
from scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
OWN, PEERS = (ROOT / "bench/figures" / name for name in ("pgqueue.json", "peers.json"))
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
NAMES = {**{name: one.what for name, one in SCENARIOS.items()}, "S8": "32 concurrent producers"}
NOT_RUN = "not run"
COSTS = {
    "worker_cpu_us": "worker CPU, µs",
    "server_cpu_us": "server CPU, µs",
    "wal_bytes": "WAL, bytes",
    "commits": "commits",
    "peak_mib": "peak, MiB",
}


def page(text: str, own: dict[str, Any] | None, peers: dict[str, Any] | None) -> str:
    """The page with these figures."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{PAGE.name} has no marks to write between")
    return before + BEGIN + "\n".join(["", *_own(own), "", *_peers(peers), ""]) + END + after


def _own(found: dict[str, Any] | None) -> list[str]:
    lines = ["### pgqueue", "", _ran(found, "make bench"), ""]
    records = found["records"] if found else []
    rows = []
    for name, what in sorted(NAMES.items(), key=lambda item: int(item[0].partition("-")[0].strip("SA"))):
        command = f'{NOT_RUN}: `make bench ARGS="{name}"`'
        rows += [_row(record) for record in records if record.scenario == name] or [
            [f"{name}: {what}", "pgqueue", command, *[""] * len(COSTS)]
        ]
    lines += _table(("scenario", "who", "median (least … most)", *COSTS.values()), rows)
    if bars := _bars(found):
        lines += ["", *bars]
    if found and found.get("rows"):
        lines += ["", *_table(("what", "figure", "goal"), [list(row.values()) for row in found["rows"]])]
    else:
        lines += ["", f'Idle cost, memory, limits: {NOT_RUN}: `make bench ARGS="idle memory limits"`.']
    return lines


def _peers(found: dict[str, Any] | None) -> list[str]:
    lines = ["### Beside other queues", "", _ran(found, "make bench-peers"), ""]
    if found is None:
        return lines[:-1]
    records: list[Record] = found["records"]
    who = list(dict.fromkeys(record.who for record in records))
    by = {(record.scenario, record.who): record for record in records}
    rows = []
    for name in (name for name in NAMES if any(record.scenario == name for record in records)):
        unit = SCENARIOS[name].unit
        rows.append([f"{name}: {NAMES[name]}, {unit}", *(_rate(by.get((name, one))) for one in who)])
    settings = {record.who: record.setting for record in records if record.scenario in {"S3", "S3A", "S7A"}}
    lines += _table(("scenario", *who), rows)
    taken = ", ".join(f"{name} `{setting}`" for name, setting in settings.items())
    lines += ["", f"Settings taken for draining: {taken or 'none'}."]
    lines += [f"Not measured: {name} ({reason})." for name, reason in found.get("missing", {}).items()]
    return [*lines, "", *_bars(found)]


def _ran(found: dict[str, Any] | None, command: str) -> str:
    if found is None:
        return f"`{command}`: {NOT_RUN}."
    return f"By `{found['command']}` on {found['at']}: {machine_line(found['machine'])}."


def _bars(found: dict[str, Any] | None) -> list[str]:
    bars = (found or {}).get("bars", [])
    return [f"- {one['bar']}: **{one['ratio']:.2f}**, {'met' if one['met'] else 'not met'}" for one in bars]


def _row(record: Record) -> list[str]:
    found = ((record.middle(name), 3 if name == "commits" else 0) for name in COSTS)
    cells = ["" if math.isnan(value) else f"{value:.{digits}f}" for value, digits in found]
    setting = f" `{record.setting}`" if record.setting else ""
    return [f"{record.scenario}: {record.what}", record.who + setting, f"{_rate(record)} {record.unit}", *cells]


def _rate(record: Record | None) -> str:
    if record is None:
        return ""
    if not record.runs:
        return "failed"
    rates = [run["rate"] for run in record.runs]
    text = f"{number(record.middle())} ({number(min(rates))} … {number(max(rates))})"
    if record.unit == "ms":
        text += f", p99 {record.middle('p99'):.1f}"
    return text + (", cut short" if any(run.get("capped") for run in record.runs) else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def main() -> None:
    """Write the page, or check it."""
    own, peers = (load(path) if path.exists() else None for path in (OWN, PEERS))
    old = PAGE.read_text(encoding="utf-8")
    new = page(old, own, peers)
    if "--check" in sys.argv[1:]:
        if new != old:
            sys.exit(f"{PAGE.name} is not what the figures say: make bench-docs")
    else:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
