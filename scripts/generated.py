"""Documents that are written from something else: written, or with `--check` compared."""

from __future__ import annotations

import sys
from pathlib import Path


def keep(target: Path, text: str, source: str) -> int:
    """Write `text`, or compare it with what is there; the exit code, with a line that says so where they differ."""
    if "--check" not in sys.argv[1:]:
        target.write_text(text, encoding="utf-8")
    elif not target.is_file() or target.read_text(encoding="utf-8") != text:
        print(f"docs/{target.name} differs from {source}: run `make docs`", file=sys.stderr)
        return 1
    return 0
