"""The documents say what is so: their blocks run, their names exist, their tables are the code's."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import document
import psycopg
import pytest
from document import ROOT, Reader, blocks
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.engine import make_url
from support import eventually, free_port

from pgqueue import NewJob, Queue, Settings, errors
from pgqueue.config import normalise_url
from pgqueue.embedded import find_binaries
from pgqueue.schema import tables

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if path.is_file()
)
WITH_BLOCKS = [name for name in DOCUMENTS if blocks(ROOT / name)]


def url_of(dsn: str) -> str:
    """A key=value string as a URL that SQLAlchemy reads too."""
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    login = parts["user"] + (f":{parts['password']}" if "password" in parts else "")
    query = f"host={parts['host']}&port={parts.get('port', '5432')}"
    return f"postgresql://{login}@/{parts['dbname']}?{query}"


@pytest.fixture
def reader(dsn: str, tmp_path: Path) -> Iterator[Reader]:
    url = url_of(dsn)
    path = [str(Path(sys.executable).parent), os.environ["PATH"], str(find_binaries().directory)]
    environment = {
        "PATH": os.pathsep.join(path),
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PGQUEUE_DATABASE_URL": url,
        "DATABASE_URL": url.replace("postgresql://", "postgresql+psycopg://"),
        "PGQUEUE_WORKSPACE_ROOT": str(tmp_path / "work"),
        "PGQUEUE_WEB_PORT": str(free_port()),  # what a document calls 8080
        "PGQUEUE_TEST_METRICS_PORT": str(free_port()),  # and 9100
        "PGQUEUE_TEST_DATABASE_URL": url,  # where the tests of docs/testing.md make their databases
    }
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # what a document's reader has beside him
    made = Reader(tmp_path, environment, url)
    yield made
    made.close()


@pytest.mark.parametrize("name", [name for name in WITH_BLOCKS if name != "README.md"])
def test_the_blocks_of_a_document_run(name: str, reader: Reader) -> None:
    for block in blocks(ROOT / name):
        reader.run(block)


def test_the_blocks_of_the_readme_run_and_its_own_executor_takes_over(reader: Reader, queue: Queue) -> None:
    found = blocks(ROOT / "README.md")
    assert {"sh", "console", "python"} == {block.language for block in found}
    for block in found:
        if "needs pg_dump" in block.mark and not can_dump(reader):
            continue
        reader.run(block)
    leads, _standby = reader.background
    assert queue.counts()["pending"] == 1, "the job of the README's own type waits for an executor"
    reader.background.remove(leads)
    reader.stop(leads)
    assert leads.returncode == 0
    eventually(lambda: queue.counts()["completed"] == 2, message="the standby leads and runs the job")


def can_dump(reader: Reader) -> bool:
    """pg_dump refuses a server that is newer than itself."""
    if not shutil.which("pg_dump", path=reader.environment["PATH"]):
        return False
    said = subprocess.check_output(["pg_dump", "--version"], env=reader.environment, text=True)
    with psycopg.connect(reader.database_url) as connection:
        return int(re.findall(r"\d+", said)[0]) >= connection.info.server_version // 10_000


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_a_document_point_to_files(name: str) -> None:
    place = (ROOT / name).parent
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8"))
    missing = [link for link in targets if "://" not in link and not (place / link).exists()]
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_a_document_names_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:pgqueue|tests|scripts|migrations|contrib|docs|examples|bench)/[\w./-]+\.\w+)`", text))
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]


def names_in(path: Path) -> set[str]:
    """Every class, function and method of a Python file, and every block of a SQL file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        return set(re.findall(r"^-- name: (\w+)", text, re.MULTILINE))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, kinds):
            names.add(node.name)
            names.update(f"{node.name}.{part.name}" for part in node.body if isinstance(part, kinds))
    return names


def test_the_architecture_names_files_and_functions_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    pairs = re.findall(r"`(pgqueue/[\w/]+\.(?:py|sql))`\s+`([\w.]+)`", text)
    assert not [(path, name) for path, name in pairs if name not in names_in(ROOT / path)]
    way = text.split("## The way of one job")[1].split("\n## ")[0]
    steps = re.split(r"^(\d+)\. ", way, flags=re.MULTILINE)[1:]
    assert [int(number) for number in steps[::2]] == list(range(1, 13))
    assert all(re.search(r"`pgqueue/", step) for step in steps[1::2]), "each step says where it is"


def test_the_architecture_names_every_table() -> None:
    part = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## The tables")[1]
    assert set(re.findall(r"`(\w+)`", part)) == {table.name for table in tables().sorted_tables} | {"all_jobs"}


def test_documents_install_extras_that_there_are_and_nothing_from_an_index_that_has_another_pgqueue() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = set()
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"pip\s+install\s+(?:-\S+\s+)*['\"]?pgqueue\b", text), name
        named |= {extra for some in re.findall(r"pip install '\.\[([\w,]+)\]'", text) for extra in some.split(",")}
    assert {"embedded", "web", "mail", "metrics", "otel", "dask", "ray"} <= named <= extras.keys()


def test_the_url_that_the_readme_takes_of_the_embedded_server_fits_sqlalchemy_and_is_its(reader: Reader) -> None:
    (line,) = re.findall(r"^export DATABASE_URL=.*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    url, said = reader._shell(f'pgqueue db url\n{line}\necho "$DATABASE_URL"').splitlines()
    assert make_url(said).drivername == "postgresql+psycopg"
    assert normalise_url(said) == url


def test_the_settings_table_is_the_settings() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (\S+) \| ", text.split("## Configuration")[1], re.MULTILINE))
    said = {name: shown(field.get_default(call_default_factory=True)) for name, field in Settings.model_fields.items()}
    assert table == said


def shown(value: Any) -> str:
    """A default as the table shows it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def test_the_exit_codes_of_the_readme_are_the_errors() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("**Exit codes.**")[1].split("\n\n")[0]
    said = {int(code) for code in re.findall(r"(\d) [a-z]", text)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PgQueueError)]
    assert said == {0} | {kind.exit_code for kind in kinds}


def test_the_command_reference_is_what_the_commands_print() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/docs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_page_of_figures_is_what_the_benches_saved() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/performance_page.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert targets >= {"help", "demo", "test", "soak", "check", "fix", "bench", "docs"}
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert targets >= set(re.findall(r"(?:`|\$ )make\s+([a-z-]+)", text)), name


@pytest.mark.skipif(not shutil.which("make"), reason="make is missing; the scripts it calls are tested")
def test_make_help_lists_every_target_and_make_calls_the_scripts() -> None:
    def make(*arguments: str) -> str:
        return subprocess.check_output(["make", "--no-print-directory", "-C", str(ROOT), *arguments], text=True)

    listed = re.findall(r"^make ([\w-]+) ", make(), re.MULTILINE)
    targets = "help demo example-logistics test soak chaos check fix formal bench bench-peers bench-docs docs"
    assert listed == targets.split()
    assert make("-n", "test", "ARGS=-k leader").strip() == "sh scripts/test -k leader"
    assert make("-n", "demo").strip() == "sh scripts/demo"


@pytest.mark.parametrize("path", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda path: path.stem[:4])
def test_a_decision_is_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# {path.stem[:4]}: ")
    assert len(lines) <= 60


def test_the_example_service_and_the_example_tasks_work_together(reader: Reader, queue: Queue) -> None:
    for name in ("tasks.py", "service.py"):
        shutil.copy(ROOT / "examples" / name, reader.directory)
    said = reader._shell("python service.py")
    assert said.endswith("is pending; of the other nothing is left: 1 pending\n")
    checksum = queue.enqueue("checksum", {"text": "abc"})
    reader._start("pgqueue dispatcher --app tasks:registry", "leader (epoch")
    eventually(lambda: queue.counts()["completed"] == 2, message="both examples' jobs run")
    assert queue.get(checksum.id).result == (ord("a") * 31 + ord("b")) * 31 + ord("c")


def test_the_systemd_unit_fits_the_dispatcher() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.read(ROOT / "contrib/pgqueue-dispatcher.service", encoding="utf-8")
    service = unit["Service"]
    assert service["ExecStart"] == "/opt/pgqueue/bin/pgqueue dispatcher"
    assert "Documentation" not in unit["Unit"], "no step of its head puts a document anywhere"
    assert float(service["TimeoutStopSec"]) > Settings.model_fields["shutdown_timeout"].default
    hopeless = {errors.ConfigurationError.exit_code, errors.SchemaError.exit_code}
    assert set(map(int, service["RestartPreventExitStatus"].split())) == hopeless


def test_the_rights_that_the_security_page_names_are_enough_to_enqueue(dsn: str, sql: Callable[..., list[Any]]) -> None:
    rows = re.findall(r"^\| (\w+) `(\w+)`[^|]* \| ([^|]+) \|$", (ROOT / "SECURITY.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 10
    role = f"enqueuer_{os.getpid()}"
    sql(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    try:
        for kind, name, rights in rows:
            thing = {"schema": f"SCHEMA {name}", "sequence": f"SEQUENCE pgqueue.{name}"}.get(kind, f"pgqueue.{name}")
            sql(f"GRANT {rights.replace('`', '')} ON {thing} TO {role}")
        with Queue(make_conninfo(dsn, user=role, password=role)) as theirs, Queue(dsn) as queue:
            job = theirs.enqueue("resize", {})
            first, second = (theirs.enqueue("resize", {}, unique_key="cat") for _ in range(2))
            assert (second.id, second.existing) == (first.id, True)
            assert theirs.enqueue("resize", unique_key="dog", unique_window=60).id
            assert len(theirs.enqueue_many([NewJob("resize")] * 300)) == 300
            assert theirs.get(job.id).state == "pending"
            assert theirs.enqueue("resize", after=[job]).state == "waiting"
            queue.cancel(job.id)
            assert theirs.enqueue("resize", after=[job]).state == "cancelled"
    finally:
        sql(f"DROP OWNED BY {role}")
        sql(f"DROP ROLE {role}")


def test_a_block_that_does_not_do_what_it_shows_is_found(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="exit code 3"):
        reader.run(document.Block("sh", "exit 3\n", "", 1))
    with pytest.raises(AssertionError, match="did not print"):
        reader.run(document.Block("console", "$ echo enqueue\nsomething else\n", "", 1))
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        reader.run(document.Block("python", "1 / 0\n", "", 1))
    with pytest.raises(AssertionError, match="no such file"):
        reader.run(document.Block("sh", "true\n", "runs: in tests/test_nothing.py", 1))
    reader.run(document.Block("console", "$ echo 12 s; echo b\n0.5 s\n…\nb\n", "", 1))


def test_json_of_the_readme_commands_is_json(reader: Reader) -> None:
    leader = json.loads(reader._shell("pgqueue leader --json 2>/dev/null"))
    assert "alive" in json.dumps(leader)
    assert "oldest" in json.dumps(json.loads(reader._shell("pgqueue stats --json 2>/dev/null")))
