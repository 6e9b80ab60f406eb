"""All of pgqueue's hot SQL: one file per table, each statement a block headed `-- name: <block>`.

The files say `pgqueue.` for the schema; `load` writes the configured schema's name in its place.
Values never enter the text: they are `%(name)s` parameters. States are literals, so that partial indexes match.
A line `-- include: <part>` stands for the block headed `-- part: <part>` in the same file, `<table>.<part>` for one in
another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

_BLOCK = re.compile(r"^-- (name|part): (\w+)[^\n]*\n", re.MULTILINE)
_PARAMETER = re.compile(r"%\((\w+)\)s")
_INCLUDE = "-- include: "
_SCHEMA = re.compile(r"\bpgqueue\.(?=[a-z%])")


@cache
def blocks(table: str, kind: str = "name") -> dict[str, str]:
    """Every block of `<table>.sql` by name; of kind `part`: what several of them include."""
    parts = _BLOCK.split(files(__name__).joinpath(f"{table}.sql").read_text(encoding="utf-8"))
    found = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    return {name: text.strip("\n").rstrip().rstrip(";") for of_kind, name, text in found if of_kind == kind}


@cache
def load(name: str, schema: str = "pgqueue") -> str:
    """The SQL of block `name` ("jobs.dispatch") for `schema`, without comments and indentation."""
    table, _, block = name.partition(".")
    return render("\n".join(_lines(table, blocks(table)[block])), schema)


@cache
def encoded(name: str, schema: str = "pgqueue") -> bytes:
    """The same as bytes, which psycopg takes as they are: one object a block, hashed once."""
    return load(name, schema).encode()


@cache
def numbered(name: str, schema: str = "pgqueue") -> tuple[bytes, tuple[str, ...]]:
    """The same with `$1` and so on in place of the parameters, and their names in that order."""
    names: dict[str, int] = {}
    text = _PARAMETER.sub(lambda found: f"${names.setdefault(found[1], len(names) + 1)}", load(name, schema))
    return text.replace("%%", "%").encode(), tuple(names)


def _lines(table: str, block: str) -> Iterator[str]:
    for line in block.splitlines():
        text = line.lstrip()
        if text.startswith(_INCLUDE):
            *other, part = text.removeprefix(_INCLUDE).strip().split(".")
            home = other[0] if other else table
            yield from _lines(home, blocks(home, "part")[part])
        elif not text.startswith("--"):
            yield text


def render(text: str, schema: str) -> str:
    """`text` with every `pgqueue.` written as `schema.`; the schema's name was checked when it was configured."""
    return _SCHEMA.sub(f"{schema}.", text)
