"""The shape of the source: each file says what it is, none grows past what can be read at once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("pgqueue", "migrations", "tests", "bench", "examples")
FILES = sorted(path for place in PLACES for path in (ROOT / place).rglob("*.py") if "__pycache__" not in path.parts)
LONGEST = 400


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_module_is_at_most_400_lines_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, f"{name(path)} has no module docstring"
    assert len(docstring.splitlines()[0]) > 10


def test_every_sql_file_says_what_it_holds():
    for path in (ROOT / "pgqueue" / "sql").glob("*.sql"):
        assert path.read_text().startswith("-- "), name(path)


def test_no_file_of_the_package_names_a_directory_of_the_machine_it_was_written_on():
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|farm|Users)/\w")
    shown = [
        f"{name(path)}:{number}"
        for path in (*FILES, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert shown == []
