"""All of pgqueue's hot SQL: one file per table, each statement a block headed `-- name: <block>`.

The files say `pgqueue.` for the schema; `load` writes the configured schema's name in its place.
Values never enter the text: they are `%(name)s` parameters. States are literals, so that partial indexes match.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_BLOCK = re.compile(r"^-- name: (\w+)[^\n]*\n", re.MULTILINE)
_SCHEMA = re.compile(r"\bpgqueue\.(?=[a-z%])")


@cache
def blocks(table: str) -> dict[str, str]:
    """Every block of `<table>.sql` by name."""
    parts = _BLOCK.split(files(__name__).joinpath(f"{table}.sql").read_text(encoding="utf-8"))
    return {name: text.strip().rstrip(";") for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def load(name: str, schema: str = "pgqueue") -> str:
    """The SQL of block `name` ("jobs.dispatch") for `schema`, without comments."""
    table, _, block = name.partition(".")
    lines = (line for line in blocks(table)[block].splitlines() if not line.lstrip().startswith("--"))
    return render("\n".join(lines), schema)


def render(text: str, schema: str) -> str:
    """`text` with every `pgqueue.` written as `schema.`; the schema's name was checked when it was configured."""
    return _SCHEMA.sub(f"{schema}.", text)
