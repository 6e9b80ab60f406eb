"""Settings: where a value comes from, what is said of a wrong one, and that no password is ever shown."""

from __future__ import annotations

import os
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from pgqueue import Settings, db, locate
from pgqueue.config import WorkerSettings, mask_password, normalise_url
from pgqueue.errors import ConfigurationError, InvalidArgumentError, PgQueueError

SECRET = "hunter2-Geheim"
# At least six characters that do not occur in what surrounds them, so that finding one is finding the password.
PASSWORDS = st.text(st.sampled_from("QXZJ94@/:%&=?#'\\ \"+;,"), min_size=6, max_size=20).filter(
    lambda text: len(set(text) & set("QXZJ94")) >= 2 and text.strip() == text
)


@pytest.fixture(autouse=True)
def nothing_configured(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("PGQUEUE_", "PG")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def toml(directory, text: str) -> None:
    (directory / "pgqueue.toml").write_text(text)


def test_the_defaults_are_the_documented_ones():
    settings = Settings()
    assert (settings.concurrency, settings.job_poll_interval, settings.heartbeat_interval) == (10, 1.0, 1.0)
    assert (settings.leader_lease_duration, settings.worker_lease_duration) == (3.0, 10.0)
    assert (settings.job_timeout, settings.shutdown_timeout) == (1800.0, 10.0)
    assert (settings.database_schema, settings.database_url, settings.execute) == ("pgqueue", None, True)


def test_flags_beat_the_environment_beats_the_section_beats_the_file_beats_the_default(nothing_configured, monkeypatch):
    assert Settings().concurrency == 10
    toml(nothing_configured, "concurrency = 11\n[staging]\nconcurrency = 12\n[production]\nconcurrency = 99\n")
    assert Settings().concurrency == 11
    monkeypatch.setenv("PGQUEUE_ENV", "staging")
    assert Settings().concurrency == 12
    monkeypatch.setenv("PGQUEUE_CONCURRENCY", "13")
    assert Settings().concurrency == 13
    assert Settings(concurrency=14).concurrency == 14


def test_a_section_leaves_what_it_does_not_say_to_the_file(nothing_configured, monkeypatch):
    toml(nothing_configured, "concurrency = 11\njob_timeout = 5\n[develop]\nconcurrency = 12\n")
    monkeypatch.setenv("PGQUEUE_ENV", "develop")
    assert (Settings().concurrency, Settings().job_timeout) == (12, 5.0)
    monkeypatch.setenv("PGQUEUE_ENV", "production")
    assert (Settings().concurrency, Settings().job_timeout) == (11, 5.0)


def test_an_empty_variable_says_nothing(monkeypatch):
    monkeypatch.setenv("PGQUEUE_CONCURRENCY", "")
    assert Settings().concurrency == 10


def test_limits_come_as_json_or_as_a_table(nothing_configured, monkeypatch):
    toml(nothing_configured, "[limits]\nresize = 4\n")
    assert Settings().limits == {"resize": 4}
    monkeypatch.setenv("PGQUEUE_LIMITS", '{"mail": 2, "any": null}')
    assert Settings().limits["mail"] == 2


def test_names_of_hosts_come_with_commas_between_as_json_or_as_a_list(nothing_configured, monkeypatch):
    toml(nothing_configured, 'api_allowed_hosts = ["a.example"]\n')
    assert Settings().api_allowed_hosts == ["a.example"]
    monkeypatch.setenv("PGQUEUE_API_ALLOWED_HOSTS", "queue.example.com")
    assert Settings().api_allowed_hosts == ["queue.example.com"]
    monkeypatch.setenv("PGQUEUE_API_ALLOWED_HOSTS", "queue.example.com, 10.0.0.1,fd00::1")
    assert Settings().api_allowed_hosts == ["queue.example.com", "10.0.0.1", "fd00::1"]
    monkeypatch.setenv("PGQUEUE_API_ALLOWED_HOSTS", '["b.example", "c.example"]')
    assert Settings().api_allowed_hosts == ["b.example", "c.example"]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CONCURRENCY", "many", ("concurrency is 'many'", "integer")),
        ("CONCURRENCY", "0", ("concurrency is '0'", "greater than or equal to 1")),
        ("JOB_POLL_INTERVAL", "-1", ("job_poll_interval is '-1'", "greater than 0")),
        ("JOB_POLL_INTERVAL", "nan", ("job_poll_interval is 'nan'",)),
        ("JOB_TIMEOUT", "inf", ("job_timeout is 'inf'", "less than or equal to")),
        ("RETENTION_FAILED", "inf", ("retention_failed is 'inf'", "less than or equal to")),
        ("LOG_LEVEL", "loud", ("log_level is 'LOUD'", "'DEBUG'")),
        ("DATABASE_SCHEMA", "Bad-Name", ("database_schema is 'Bad-Name'", "a-z 0-9 _")),
        ("LEADER_NAME", "a b", ("leader_name is 'a b'", "1 to 128 characters")),
        ("BACKEND", "spark", ("backend is 'spark'", "'inline', 'process', 'dask' or 'ray'")),
        ("EXECUTE", "perhaps", ("execute is 'perhaps'", "boolean")),
        ("LIMITS", "not json", ("limits", "must be JSON")),
        ("LIMITS", '{"resize": 0}', ("limits", "limit of resize 0", "from 1 to")),
        ("LIMITS", '{"a b": 1}', ("limits", "invalid job type 'a b'")),
        ("API_ALLOWED_HOSTS", "[queue", ("api_allowed_hosts is '[queue'", "names with commas between")),
        ("API_ALLOWED_HOSTS", "https://queue.example.com", ("api_allowed_hosts", "without scheme and port")),
        ("DATABASE_URL", "mysql://x/y", ("database_url is ***", "starts with 'mysql': must be postgresql://")),
    ],
)
def test_a_wrong_value_names_its_key_the_value_and_the_rule(variable, value, said, monkeypatch):
    monkeypatch.setenv(f"PGQUEUE_{variable}", value)
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert caught.value.exit_code == 2
    for words in said:
        assert words in str(caught.value)


def test_an_unknown_setting_is_refused_and_the_known_ones_are_listed(nothing_configured):
    toml(nothing_configured, "concurency = 5\n")
    with pytest.raises(ConfigurationError, match=r"unknown setting 'concurency': known are .*concurrency") as caught:
        Settings()
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigurationError, match="unknown setting 'colour'"):
        Settings(colour="red")


def test_an_environment_nobody_knows_is_refused(monkeypatch):
    monkeypatch.setenv("PGQUEUE_ENV", "prod")
    with pytest.raises(ConfigurationError, match="PGQUEUE_ENV is 'prod': must be one of develop, staging, production"):
        Settings()


def test_a_named_file_must_be_there_and_readable(nothing_configured, monkeypatch):
    monkeypatch.setenv("PGQUEUE_CONFIG", str(nothing_configured / "mine.toml"))
    with pytest.raises(ConfigurationError, match="there is no such file"):
        Settings()
    (nothing_configured / "mine.toml").write_text("concurrency = ")
    with pytest.raises(ConfigurationError, match="cannot be read as TOML"):
        Settings()
    (nothing_configured / "mine.toml").write_text("concurrency = 7")
    assert Settings().concurrency == 7


def test_a_section_must_be_a_section(nothing_configured, monkeypatch):
    toml(nothing_configured, 'develop = "yes"\n')
    monkeypatch.setenv("PGQUEUE_ENV", "develop")
    with pytest.raises(ConfigurationError, match=r"\[develop\] must be a section"):
        Settings()


@pytest.mark.parametrize("key", ["leader_lease_duration", "worker_lease_duration"])
def test_a_lease_is_at_least_two_and_a_half_heartbeats(key):
    assert Settings(heartbeat_interval=2, leader_lease_duration=5, worker_lease_duration=5).heartbeat_interval == 2
    leases = {"leader_lease_duration": 10, "worker_lease_duration": 10, key: 4.9}
    with pytest.raises(ConfigurationError, match=rf"{key} is 4.9: must be at least 2.5 x heartbeat_interval \(2\) = 5"):
        Settings(heartbeat_interval=2, **leases)


def test_several_wrong_values_are_all_named():
    with pytest.raises(ConfigurationError) as caught:
        Settings(concurrency=0, log_level="loud")
    assert "concurrency" in str(caught.value)
    assert "log_level" in str(caught.value)


def test_a_process_that_never_leads_needs_no_lease_of_a_leader_that_fits():
    assert WorkerSettings(heartbeat_interval=4).leader_lease_duration == 3
    with pytest.raises(ConfigurationError, match="worker_lease_duration is 10"):
        WorkerSettings(heartbeat_interval=5)


@pytest.mark.parametrize("value", [f"postgresql://u:{SECRET}@h/d", f"host=h password={SECRET}"])
def test_settings_never_show_a_password(value):
    settings = Settings(
        database_url=value, direct_database_url=value, default_database_url=value, workspace_template=value
    )
    for text in (repr(settings), str(settings), f"{settings!r:>10}", str(locate.locate(settings))):
        assert SECRET not in text


@pytest.mark.parametrize(
    "value",
    [
        f"mysql://u:{SECRET}@h/d",
        f"{SECRET}",
        f"host=h password=my {SECRET}",
        f"postgresql://u:%zz{SECRET}@h/d",
        f"postgresql://u:{SECRET}/x@h/d",
        f"postgresql://h/d?{SECRET}",
        f"postgresql://u:%00{SECRET}@h/d",
        f"host=h password='{SECRET}",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(value):
    with pytest.raises(PgQueueError) as caught:
        db.conninfo(Settings(database_url=value).database_url or "", "test")
    assert SECRET not in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None


@given(PASSWORDS)
def test_a_masked_url_or_dsn_has_nothing_left_of_its_password(password):
    forms = [
        f"postgresql://user:{quote(password, safe='')}@host:5432/base",
        f"postgresql://user:{password}@host:5432/base?sslmode=require",
        f"postgresql://user:{password}@one:1,two:2/base",
        f"postgresql://host/base?user=u&password={quote(password, safe='')}",
        f"postgresql://host/base?password={quote(password, safe='')}&user=u",
        make_conninfo(host="host", password=password, user="user"),
        make_conninfo(sslpassword=password, host="host"),
        f"PASSWORD = '{password.replace(chr(92), chr(92) * 2).replace(chr(39), chr(92) + chr(39))}' host=host",
    ]
    for form in forms:
        for text in (form, f"could not connect to {form}: refused", f"{form}\n{form}"):
            masked = mask_password(text)
            assert "***" in masked
            for secret in (password, quote(password, safe="")):
                assert secret not in masked
            assert not set(masked) & set("QXZJ9")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("host=h user=u password=p dbname=d", "host=h user=u password=*** dbname=d"),
        ('password authentication failed for user "u"', 'password authentication failed for user "u"'),
    ],
)
def test_masking_leaves_the_rest_to_be_read(text, masked):
    assert mask_password(text) == masked


@pytest.mark.parametrize(
    ("given_url", "read"),
    [
        ("postgres://h/d", "postgresql://h/d"),
        (" postgresql+psycopg://u:p@h/d ", "postgresql://u:p@h/d"),
        ("postgresql+asyncpg://h/d", "postgresql://h/d"),
        ("host=h dbname=d", "host=h dbname=d"),
        ("host=h password=a://b", "host=h password=a://b"),
    ],
)
def test_urls_are_read_as_libpq_reads_them(given_url, read):
    assert normalise_url(given_url) == read


@pytest.mark.parametrize("url", ["", "localhost", "http://h/d", "redis://h"])
def test_what_is_no_database_url_is_refused(url):
    with pytest.raises(InvalidArgumentError):
        normalise_url(url)


def test_the_database_comes_from_the_setting_else_from_libpqs_variables_else_is_embedded(monkeypatch):
    assert Settings().database() == (None, "embedded")
    monkeypatch.setenv("PGSERVICE", "mine")
    assert Settings().database() == ("postgresql://", "PGSERVICE")
    monkeypatch.setenv("PGHOST", "h")
    assert Settings().database() == ("postgresql://", "PGHOST")
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", "postgresql+psycopg://h/d")
    assert Settings().database() == ("postgresql://h/d", "database_url")


def test_connections_get_time_outs_and_keepalives_unless_the_url_says_otherwise():
    assert "connect_timeout=5" in db.conninfo("postgresql://h/d", "test")
    assert "connect_timeout=2" in db.conninfo("postgresql://h/d?connect_timeout=2", "test")
    assert "target_session_attrs" not in db.conninfo("postgresql://h/d", "test")
    assert "target_session_attrs=read-write" in db.conninfo("postgresql://one:1,two:2/d", "test")
