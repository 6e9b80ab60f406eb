"""What the benches found: records of runs, ratios between them, the bars they are held to, and the file they lie in."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pgqueue.embedded import find_binaries

COSTS = {
    "worker_cpu_us": "worker CPU {:.0f} µs",
    "server_cpu_us": "server CPU {:.0f} µs",
    "wal_bytes": "WAL {:.0f} B",
    "commits": "commits {:.3f}",
    "peak_mib": "peak {:.0f} MiB",
}
"""Of one job, but the last."""


@dataclass
class Record:
    """The runs of one scenario by one contender."""

    scenario: str
    who: str
    what: str
    unit: str = "jobs/s"
    setting: str = ""
    runs: list[dict[str, float]] = field(default_factory=list)
    error: str = ""

    def middle(self, figure: str = "rate") -> float:
        """The median of a figure over the runs; NaN if there is none."""
        found = [run[figure] for run in self.runs if figure in run]
        return statistics.median(found) if found else float("nan")

    def line(self) -> str:
        """Median, least and most, and what a job cost."""
        head = f"{self.scenario:<9} {self.who:<16}"
        if not self.runs:
            return f"{head} failed: {self.error.strip().splitlines()[-1] if self.error.strip() else '?'}"
        rates = [run["rate"] for run in self.runs]
        rate = f"{number(self.middle())} ({number(min(rates))} … {number(max(rates))}) {self.unit}"
        if self.unit == "ms":
            rate += f", p95 {self.middle('p95'):.1f}, p99 {self.middle('p99'):.1f}"
        costs = [text.format(value) for name, text in COSTS.items() if (value := self.middle(name)) == value]
        costs += ["capped"] if any(run.get("capped") for run in self.runs) else []
        setting = f" [{self.setting}]" if self.setting else ""
        return f"{head} {rate:<34} {'; '.join(costs)}{setting}".rstrip()


@dataclass(frozen=True)
class Bar:
    """What a figure of one contender has to be, as a multiple of another's; round by round, then the median."""

    scenario: str
    who: str
    than: str
    of: str
    limit: float
    at_most: bool = False
    figure: str = "rate"

    def held(self, records: Sequence[Record]) -> dict[str, Any] | None:
        """The ratio and whether it is met; None if one of the two did not run."""
        by = {(one.scenario, one.who): one for one in records}
        mine, other = by.get((self.scenario, self.who)), by.get((self.than, self.of))
        if mine is None or other is None or not mine.runs or not other.runs:
            return None
        pairs = zip(mine.runs, other.runs, strict=False)
        ratios = [one[self.figure] / two[self.figure] for one, two in pairs if two[self.figure]]
        if not ratios:
            return None
        ratio = statistics.median(ratios)
        met = ratio <= self.limit if self.at_most else ratio >= self.limit
        return {"bar": self.text(), "ratio": round(ratio, 3), "limit": self.limit, "met": met}

    def text(self) -> str:
        """`S3 pgqueue ≥ 1.2 of S3 graphile-worker`."""
        figure = "" if self.figure == "rate" else f" {self.figure}"
        sign = "≤" if self.at_most else "≥"
        return f"{self.scenario}{figure} {self.who} {sign} {self.limit:g} of {self.than} {self.of}"


def held(bars: Sequence[Bar], records: Sequence[Record]) -> list[dict[str, Any]]:
    """Those whose two sides ran."""
    return [found for bar in bars if (found := bar.held(records)) is not None]


def said(found: dict[str, Any]) -> str:
    """One bar, as it is printed."""
    return f"{found['bar']}: {found['ratio']:.2f}, {'met' if found['met'] else 'NOT MET'}"


def number(value: float) -> str:
    """With as many digits as mean something."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}".replace(",", " ")


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": find_binaries().version,
        "load": round(os.getloadavg()[0], 1),
    }


def machine_line(of: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{of['cpu']}, {of['cores']} cores, {of['memory_gib']:g} GiB, {of['system']}, Python {of['python']}, "
        f"PostgreSQL {of['postgresql']}, load {of['load']:g} when it began"
    )


def save(path: Path, command: str, of: dict[str, Any], records: Sequence[Record], **rest: Any) -> None:
    """Everything, as JSON: every run, not only the medians."""
    whole = {"command": command, "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "machine": of, **rest}
    whole["records"] = [asdict(record) for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, its records as such."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["records"] = [Record(**record) for record in whole["records"]]
    return whole


def command(make: str) -> str:
    """How this run was asked for: `make bench ARGS="S3 --quick"`."""
    words = re.sub(r" ?--(json|home) \S+", "", " ".join(sys.argv[1:])).strip()
    return f'make {make} ARGS="{words}"' if words else f"make {make}"
