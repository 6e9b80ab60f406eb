"""`pgqueue doctor --app`: stored payloads that the code's models refuse, executors without what they need."""

from __future__ import annotations

import dataclasses

import pytest
from cli_tools import assert_one_error, invoke
from pydantic import BaseModel

from pgqueue import Inspector, Registry
from pgqueue.doctor import APPLICATION_CHECKS
from pgqueue.errors import InvalidArgumentError


class Resize(BaseModel):
    image: str


@dataclasses.dataclass
class Crop:
    width: int


def nothing(_job, _context):
    pass


def found(dsn, registry, code):
    with Inspector(dsn) as inspector:
        (one,) = inspector.doctor([code], registry)
    assert one.code == code
    assert (one.remedy is None) == (one.verdict == "ok")
    return one


def test_a_model_that_refuses_what_is_stored_is_found_whatever_queue_it_is_in(dsn, queue):
    registry = Registry()
    registry.register("resize", nothing, payload=Resize)
    registry.register("crop", nothing, payload=Crop)
    registry.register("free", nothing)
    for name in ("resize", "free", "elsewhere"):
        queue.enqueue(name, {"image": "cat.png"})
    queue.enqueue("crop", {"width": 3}, delay=60)
    assert found(dsn, registry, "payloads").verdict == "ok"
    bad = [queue.enqueue("resize", {"picture": 1}, queue="q"), queue.enqueue("crop", {"height": 3}, delay=60)]
    one = found(dsn, registry, "payloads")
    assert one.verdict == "bad"
    assert f"job {bad[0].id}: Resize: Field required (at $.image)" in one.text
    assert {(kind["name"], *kind["jobs"]) for kind in one.details["types"]} == {
        ("resize", bad[0].id), ("crop", bad[1].id),
    }  # fmt: skip


def test_the_sample_is_bounded(dsn, sql):
    registry = Registry()
    registry.register("resize", nothing, payload=Resize)
    for state in ("pending", "scheduled"):
        sql(
            f"INSERT INTO pgqueue.jobs (type, state, payload) SELECT 'resize', '{state}', '{{}}' "
            "FROM generate_series(1, 500)"
        )
    one = found(dsn, registry, "payloads")
    assert one.text.startswith("40 stored payloads looked at")


def test_a_resource_that_a_handler_takes_and_nobody_declares_is_found(dsn):
    registry = Registry()
    stranger = Registry().resource("stranger", dict)
    pictures = registry.resource("pictures", dict)

    @registry.executor("whole")
    async def whole(_job, context):
        return context.resources[pictures], context.resources["pictures"]

    assert found(dsn, registry, "dependencies").verdict == "ok"

    @registry.executor("lacking")
    async def lacking(_job, context):
        return context.resources["cache"], context.resources[stranger]

    one = found(dsn, registry, "dependencies")
    assert one.verdict == "bad"
    assert one.details["types"] == [{"name": "lacking", "missing": ["no resource 'cache'", "no resource 'stranger'"]}]


def test_a_constructor_s_argument_that_is_none_is_found_unless_it_may_be(dsn):
    class Thumbnail:
        def __init__(self, pictures, cache=None, *, log: str | None):
            self._pictures, self._cache, self._log = pictures, cache, log

        def execute(self, _job, _context):
            pass

    registry = Registry()
    registry.register("whole", Thumbnail({}, log=None))
    assert found(dsn, registry, "dependencies").verdict == "ok"
    registry.register("lacking", Thumbnail(None, log=None))
    one = found(dsn, registry, "dependencies")
    assert "lacking (argument pictures is None)" in one.text


def test_the_command_makes_these_checks_with_an_app_and_only_then(dsn, tmp_path, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "doctored_app.py").write_text(
        "from pgqueue import Registry\nregistry = Registry()\n"
        "registry.register('lacking', lambda job, context: context.resources['cache'])\n"
    )
    result = invoke("doctor", "payloads", "dependencies", "--app", "doctored_app:registry")
    assert result.exit_code == 1
    assert "1 executor missing a dependency: lacking (no resource 'cache')" in result.stdout
    assert_one_error(invoke("doctor", "payloads"), 2, "--app MODULE:REGISTRY")
    codes = {check.code for check in APPLICATION_CHECKS}
    with Inspector(dsn) as inspector:
        assert not codes & {one.code for one in inspector.doctor()}
        assert codes <= {one.code for one in inspector.doctor(registry=Registry())}
        with pytest.raises(InvalidArgumentError, match="no check 'x'"):
            inspector.doctor(["x"], Registry())
