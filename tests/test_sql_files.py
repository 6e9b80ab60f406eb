"""The SQL lives in pgqueue/sql, one block for each store function and one store function for each block."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from pgqueue import sql

PACKAGE = Path(sql.__file__).parents[1]
TABLES = sorted(path.stem for path in (PACKAGE / "sql").glob("*.sql"))
BLOCKS = sorted(f"{table}.{block}" for table in TABLES for block in sql.blocks(table))
STATEMENTS = (
    r"\b(SELECT\b.{0,400}?\bFROM\b|INSERT\s+INTO\b|UPDATE\s+\S+\s+(AS\s+\w+\s+)?SET\b|DELETE\s+FROM\b|COPY\s+\S+\s+\()"
)


def names_in_store() -> Counter[str]:
    """How many store functions make a Statement or CopyRows of each block."""
    used: Counter[str] = Counter()
    for path in (PACKAGE / "store").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                used.update(
                    {
                        node.args[0].value
                        for node in ast.walk(function)
                        if isinstance(node, ast.Call)
                        and isinstance(node.func, ast.Name)
                        and node.func.id in {"Statement", "CopyRows"}
                        and isinstance(node.args[0], ast.Constant)
                    }
                )
    return used


def test_each_block_is_used_by_exactly_one_store_function_and_each_function_has_its_block():
    assert names_in_store() == Counter(BLOCKS)


def test_no_block_is_named_twice_in_a_file():
    for table in TABLES:
        names = re.findall(r"^-- name: (\w+)", (PACKAGE / "sql" / f"{table}.sql").read_text(), re.MULTILINE)
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_says_what_it_is_for(name):
    table, _, block = name.partition(".")
    assert sql.blocks(table)[block].startswith("-- "), f"{name} has no comment"


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_renders_for_another_schema_without_a_word_of_the_first(name):
    text = sql.load(name, "other")
    assert "--" not in text
    assert "pgqueue." not in text
    assert text.strip()
    assert not text.rstrip().endswith(";")


@pytest.mark.parametrize("name", BLOCKS)
def test_states_are_literals_because_a_parameter_cannot_match_a_partial_index(name):
    compared = re.findall(r"\bstate\s*(?:=|<>|IN)\s*\(?\s*(\S+)", sql.load(name))
    lists = ("page_of_live", "page_of_finished", "reach_of_finished")
    # People's filters over hot and history, no partial index behind them.
    allowed = {"jobs.list_jobs", *(f"listing.{block}" for block in lists)}
    if name not in allowed:
        assert [value for value in compared if not value.startswith(("'", "CAST(locked.state"))] in ([], ["CASE"])
    assert "state = %(" not in sql.load(name)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_predicate_takes_no_advisory_lock(name):
    """A planner may call it for rows that another condition would have left out."""
    assert not re.search(r"WHERE[^()]*pg_(?:try_)?advisory", sql.load(name), re.DOTALL)


def test_no_sql_over_tables_outside_the_sql_files_and_the_migrations():
    found = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "_migrations" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(STATEMENTS, node.value, re.DOTALL)
    ]
    assert found == []
