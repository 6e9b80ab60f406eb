"""Rounds over scenarios and contenders: in each repeat everyone runs every scenario, in turn.

So the machine's drift meets all alike. Each run is told on stderr as it ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from contender import Contender
from results import Record, number
from scenarios import SCENARIOS, Field


def run(field: Field, contenders: Sequence[Contender], names: Sequence[str], repeats: int) -> list[Record]:
    """The records of these scenarios, in their order; what fails is a record with the error."""
    records: dict[tuple[str, str], Record] = {}
    for repeat in range(repeats):
        for name in names:
            taking = [one for one in contenders if takes(one, name)]
            for contender in taking if repeat % 2 == 0 else reversed(taking):
                record = records.setdefault((name, contender.name), _record(field, contender, name))
                if not record.error:
                    _once(field, contender, record)
    order = {one.name: place for place, one in enumerate(contenders)}
    return sorted(records.values(), key=lambda one: (names.index(one.scenario), order[one.who]))


def takes(contender: Contender, name: str) -> bool:
    """True if it takes part in the scenario."""
    if SCENARIOS[name].own:
        return contender.name == "pgqueue"
    return not contender.only or name in contender.only


def _record(field: Field, contender: Contender, name: str) -> Record:
    setting = {"S1": "", "S2": "", "S4": contender.idle}.get(name, field.setting(contender))
    return Record(name, contender.name, SCENARIOS[name].what, SCENARIOS[name].unit, setting)


def _once(field: Field, contender: Contender, record: Record) -> None:
    try:
        figures = SCENARIOS[record.scenario].run(field, contender)
    except Exception as error:
        record.error = str(error) or repr(error)
        _tell(f"{record.scenario} {contender.name}: {record.error}")
    else:
        record.runs.append(figures)
        _tell(f"{record.scenario} {contender.name}: {number(figures['rate'])} {record.unit}")


def calibrate(
    field: Field, contenders: Sequence[Contender], names: Sequence[str], jobs: int
) -> tuple[list[Contender], dict[str, str]]:
    """Those that can drain at all, after each chose its setting; and why the others cannot."""
    able, reasons = [], {}
    for contender in contenders:
        drains = [name for name in names if name not in {"S1", "S2", "S4"} and takes(contender, name)]
        if drains and len(contender.settings) > 1 and contender.name not in field.chosen:
            try:
                rates = field.calibrate(contender, jobs)
            except Exception as error:
                reasons[contender.name] = (str(error) or repr(error)).strip().splitlines()[-1]
                _tell(f"{contender.name} does not run: {error}")
                continue
            tried = ", ".join(f"{setting}: {number(rate)}" for setting, rate in rates.items())
            _tell(f"{contender.name} takes {field.chosen[contender.name]} of {tried}")
        able.append(contender)
    return able, reasons


def _tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
