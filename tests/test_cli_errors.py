"""The command line around its commands: help and its speed, configuration, errors and their exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import click
import pytest
from cli_tools import SECRET, assert_one_error, data, environment, invoke, run
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from pgqueue import Settings, db
from pgqueue.cli import main, options
from pgqueue.cli.program import Program
from pgqueue.clock import duration
from pgqueue.errors import JobNotFoundError

HEAVY = ("pydantic", "psycopg", "sqlalchemy", "alembic", "rich", "asyncio")
EXAMPLE = Path(__file__).parents[1] / "pgqueue.toml.example"


def commands(command=main, path=()):
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


# Help and start-up


def test_every_help_answers_without_heavy_imports():
    program = f"""if True:
        import sys
        from click.testing import CliRunner
        from pgqueue.cli import main
        for path in {list(commands())!r}:
            result = CliRunner().invoke(main, [*path, "--help"])
            assert result.exit_code == 0 and "Usage: pgqueue" in result.output, (path, result.output)
        print([name for name in {HEAVY!r} if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_group_alone_prints_its_help_and_that_no_command_is_given():
    for path in ([], ["jobs"], ["tokens"], ["db"], ["config"]):
        result = invoke(*path)
        lines = result.stderr.splitlines()
        assert (result.exit_code, result.stdout) == (2, "")
        assert lines[0] == f"Usage: {' '.join(['pgqueue', *path])} [OPTIONS] COMMAND [ARGS]..."
        assert "Commands:" in lines
        assert [line for line in lines if line.startswith("pgqueue: error")] == ["pgqueue: error: no command is given"]


def test_help_answers_in_under_three_tenths_of_a_second():
    def took():
        started = time.monotonic()
        assert run("--help").returncode == 0
        return time.monotonic() - started

    assert min(took() for _ in range(5)) < 0.3


def test_every_flag_that_is_a_setting_shows_its_variable_and_default():
    text = re.sub(r"\s+", " ", invoke("up", "--help").output + invoke("worker", "--help").output)
    for field, (flag, _metavar, _help, default) in options.FLAGS.items():
        setting = Settings.model_fields[field]
        assert f"{flag.split('/')[0]} " in text
        shown = f"PGQUEUE_{field.upper()}; default: ({default})" if default else f"PGQUEUE_{field.upper()}]"
        assert f"[env var: {shown}" in text
        written = f"{setting.default:g}" if type(setting.default) is float else setting.default
        assert default == (None if written is None else str(written).replace("True", "true").replace("False", "false"))


def test_every_command_that_touches_the_queue_takes_a_database_url():
    for path in commands():
        command = main
        for name in path:
            command = command.commands[name]
        takes = {parameter.name for parameter in command.params} >= {"database_url", "database_schema"}
        touches = not isinstance(command, click.Group) and path[0] not in {"db", "version", "completion"}
        assert takes == touches, path


def test_version_and_completion():
    assert invoke("version").stdout == invoke("--version").stdout == "pgqueue 0.1.0\n"
    assert data("version")["version"] == "0.1.0"
    for shell in ("bash", "zsh", "fish"):
        assert "_PGQUEUE_COMPLETE" in invoke("completion", shell).stdout
    assert "  fish:      pgqueue completion fish | source in config.fish\n" in invoke("completion", "--help").stdout
    completed = run(
        env=environment(_PGQUEUE_COMPLETE="bash_complete", COMP_WORDS="pgqueue jobs list --state p", COMP_CWORD="4")
    )
    assert completed.stdout.split() == ["plain,pending", "plain,processing"]


# The database and its schema


def test_a_missing_schema_is_exit_code_4_until_migrate(empty_dsn, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", empty_dsn)
    for command in (["stats"], ["enqueue", "a"], ["types", "set-limit", "a", "1"], ["dispatcher"]):
        result = invoke(*command)
        assert result.exit_code == 4
        assert result.stderr.splitlines()[-1].endswith("run `pgqueue migrate`")
    made = invoke("migrate")
    assert made.exit_code == 0, made.output
    assert f"revision {db.SCHEMA_LEVEL:04} (made)" in made.stderr
    assert made.stdout == ""
    assert "nothing to do" in invoke("migrate").stderr
    assert data("migrate") == {"schema": "pgqueue", "revision": db.SCHEMA_LEVEL}
    assert data("enqueue", "a")["state"] == "pending"


def test_migrate_leaves_a_newer_schema_that_serves_this_pgqueue_as_it_is(dsn, sql, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    sql("INSERT INTO pgqueue.revisions (number, serves_code_from) VALUES (99, 4)")
    sql("UPDATE pgqueue.pgqueue_alembic_version SET version_num = '0099'")
    served = invoke("migrate")
    assert (served.exit_code, served.stdout) == (0, ""), served.output
    assert "revision 0099 (nothing to do: newer" in served.stderr.splitlines()[-1]
    sql("UPDATE pgqueue.revisions SET serves_code_from = 50 WHERE number = 99")
    for command in ("migrate", "up", "stats"):
        refused = invoke(command)
        assert refused.exit_code == 4, refused.output
        assert refused.stderr.splitlines()[-1].startswith("pgqueue: error: pgqueue's schema is at level 99")


def test_a_schema_of_another_name_is_a_queue_of_its_own(dsn, queue):
    other = ("--database-url", dsn, "--database-schema", "other")
    assert invoke("stats", *other).exit_code == 4
    assert invoke("migrate", *other).exit_code == 0
    assert data("enqueue", "a", *other)["id"] == 1
    assert data("stats", *other)["pending"] == 1
    assert queue.counts()["pending"] == 0


def test_an_unreachable_database_is_exit_code_3_and_its_password_stays_unsaid(tmp_path):
    url = f"postgresql://user:{SECRET.replace('/', '%2F')}@/db?host={tmp_path}"
    keyed = make_conninfo(host=str(tmp_path), user="user", dbname="db", password=SECRET)
    for command in (["stats"], ["enqueue", "a"], ["migrate"], ["dispatcher"], ["jobs", "show", "1"]):
        for database in (url, keyed):
            result = invoke(*command, "--database-url", database)
            assert result.exit_code == 3, result.output
            assert result.stderr.splitlines()[-1].startswith("pgqueue: error: database unavailable: ")
            assert "s3cret" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats", "--database-url", f"mysql://user:{SECRET}@host/db"],
        ["stats", "--database-url", f"postgresql://user:{SECRET}@host:port/db"],
        ["stats", f"postgresql://user:{SECRET}@host/db"],
        [f"postgresql://user:{SECRET}@host/db"],
        ["stats", f"--database-urll=postgresql://user:{SECRET}@host/db"],
        ["enqueue", "a", "--timeout", f"postgresql://user:{SECRET}@host/db"],
        ["types", "set-limit", "a", f"postgresql://user:{SECRET}@host/db"],
    ],
)
def test_a_password_in_the_wrong_place_is_not_repeated(arguments):
    result = invoke(*arguments)
    assert_one_error(result, 2)
    assert "s3cret" not in result.output


# Errors that are nobody's fault in particular


failing = Program("failing", help="A program whose commands fail.")


def _fails_with(error):
    def fail():
        raise error

    return click.Command(type(error).__name__, callback=fail)


for _error in (RuntimeError("x\x1b[2J postgresql://u:s3cret@h/d"), JobNotFoundError("no"), KeyboardInterrupt()):
    failing.add_command(_fails_with(_error))


def test_an_unexpected_error_is_one_line_and_a_traceback_only_when_debugging(monkeypatch):
    result = CliRunner().invoke(failing, ["RuntimeError"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("pgqueue: error: RuntimeError: x\\x1b[2J postgresql://u:***@")
    monkeypatch.setenv("PGQUEUE_LOG_LEVEL", "debug")
    result = CliRunner().invoke(failing, ["RuntimeError"])
    assert "Traceback (most recent call last)" in result.stderr
    assert "\x1b" not in result.stderr
    assert "s3cret" not in result.stderr


def test_pgqueue_errors_and_interrupts_have_their_exit_codes():
    assert CliRunner().invoke(failing, ["JobNotFoundError"]).exit_code == 5
    interrupted = CliRunner().invoke(failing, ["KeyboardInterrupt"])
    assert interrupted.exit_code == 130
    assert interrupted.stderr.strip() == ""


def test_a_reader_that_left_is_met_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pgqueue", "completion", "bash"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment(), timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_durations_are_read_at_a_glance():
    shown = [duration(seconds) for seconds in (0.0, 0.0042, 42.0, 59.99, 60.0, 425.0, 10_920.0, 356_400.0)]
    assert shown == ["0 s", "4.2 ms", "42 s", "60 s", "1 min", "7 min 5 s", "3 h 2 min", "4 d 3 h"]


# Configuration


def test_config_show_says_every_value_where_it_came_from_and_no_password(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pgqueue.toml").write_text(
        f'concurrency = 3\ndatabase_url = "postgresql://u:{SECRET}@h/d"\n[staging]\njob_timeout = 60.0\n'
    )
    monkeypatch.setenv("PGQUEUE_ENV", "staging")
    monkeypatch.setenv("PGQUEUE_LEADER_NAME", "north")
    monkeypatch.setenv("PGQUEUE_CONCURRENCY", "4")
    monkeypatch.setenv("PGQUEUE_APP", "")
    monkeypatch.setenv("PGQUEUE_SMTP_PASSWORD", SECRET)
    rows = {row["setting"]: (row["value"], row["source"]) for row in data("config", "show", "--concurrency", "5")}
    assert set(rows) == set(Settings.model_fields)
    assert rows["concurrency"] == (5, "--concurrency")
    assert rows["leader_name"] == ("north", "PGQUEUE_LEADER_NAME")
    assert rows["job_timeout"] == (60.0, "pgqueue.toml")
    assert rows["log_level"] == ("INFO", "default")
    assert rows["app"] == (None, "default")
    assert rows["database_url"][0].startswith("postgresql://u:***@")
    assert rows["smtp_password"] == ("***", "PGQUEUE_SMTP_PASSWORD")
    shown = invoke("config", "show")
    assert "s3cret" not in shown.output
    assert "(from pgqueue.toml)" in shown.stderr


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"PGQUEUE_CONCURRENCY": "many"}, ["concurrency", "'many'"]),
        ({"PGQUEUE_LEADER_LEASE_DURATION": "2"}, ["leader_lease_duration is 2", "2.5"]),
        ({"PGQUEUE_ENV": "live"}, ["PGQUEUE_ENV", "'live'", "production"]),
        ({"PGQUEUE_CONFIG": "gone.toml"}, ["gone.toml"]),
        ({"PGQUEUE_LIMITS": "garbage"}, ["limits"]),
        ({"PGQUEUE_LOG_LEVEL": "loud"}, ["log_level", "'LOUD'"]),
    ],
)
def test_a_wrong_setting_is_exit_code_2_and_names_itself(variables, parts):
    assert_one_error(invoke("config", "show", env=variables), 2, *parts)


def test_a_worker_s_heartbeat_need_not_fit_the_lease_of_a_leader():
    arguments = ("--heartbeat-interval", "2", "--app", "not_there_at_all:registry")
    assert_one_error(invoke("worker", *arguments), 2, "no module 'not_there_at_all'")
    assert_one_error(invoke("dispatcher", *arguments), 2, "leader_lease_duration is 3")
    assert_one_error(invoke("worker", "--heartbeat-interval", "5"), 2, "worker_lease_duration is 10")


def test_the_example_file_holds_every_setting_with_its_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = EXAMPLE.read_text()
    assert tomllib.loads(text) == {}
    uncommented = re.sub(r"(?m)^#(?=[a-z_\[])", "", text)
    content = tomllib.loads(uncommented)
    assert content.keys() == Settings.model_fields.keys() | {"develop", "staging", "production"}
    for name, field in Settings.model_fields.items():
        if field.default is not None and name != "limits":  # limits shows the two that Limits() has
            assert content[name] == field.default, name
    (tmp_path / "pgqueue.toml").write_text(uncommented)
    for environment_name in ("", "develop", "staging", "production"):
        monkeypatch.setenv("PGQUEUE_ENV", environment_name)
        settings = Settings()
        assert settings.concurrency == content.get(environment_name, {}).get("concurrency", 10)
