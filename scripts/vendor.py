"""Fetches the files of others from npm as a VENDOR.json says; `sh scripts/vendor` runs it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTS = (ROOT / "pgqueue/web/dashboard/static/vendor/VENDOR.json", ROOT / "tests/vendor/VENDOR.json")


def fetch(package: str, version: str, directory: Path) -> Path:
    """The package's archive."""
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    return directory / done.stdout.split()[-1]


def read(archive: Path, name: str) -> bytes:
    """One file of it."""
    with tarfile.open(archive) as opened:
        member = opened.extractfile(f"package/{name}")
        if member is None:
            raise SystemExit(f"{archive.name} has no {name}")
        return member.read()


def main() -> int:
    """Fetch, or compare."""
    only_check = sys.argv[1:] == ["check"]
    different = 0
    for path in LISTS:
        entries = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as directory:
            archives: dict[tuple[str, str], Path] = {}
            for entry in entries:
                key = (entry["package"], entry["version"])
                if key not in archives:
                    archives[key] = fetch(*key, Path(directory))
                content = read(archives[key], entry["source"])
                digest = hashlib.sha256(content).hexdigest()
                same = digest == entry["sha256"] and (path.parent / entry["file"]).read_bytes() == content
                different += not same
                print(f"{entry['file']}: {entry['package']} {entry['version']}{'' if same else ': differs'}")
                if not only_check:
                    entry["sha256"] = digest
                    (path.parent / entry["file"]).write_bytes(content)
        if not only_check:
            path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return 1 if only_check and different else 0


if __name__ == "__main__":
    sys.exit(main())
