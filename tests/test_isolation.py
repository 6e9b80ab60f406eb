"""Handlers in processes of their own: jobs go there and results, errors and wishes come back as they are inline."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import isolated_handlers as handlers
import pytest
from isolation_tools import job, pool_of, run, run_alone
from soak import say

from pgqueue.errors import ConfigurationError, InvalidPayloadError
from pgqueue.job import Job
from pgqueue.outcome import Cancel, Discard, Retry, Snooze, decide
from pgqueue.worker.isolation import IsolatedError


@pytest.mark.parametrize("handler", [handlers.echo, handlers.echo_async])
def test_a_job_runs_in_another_process_which_is_kept_for_the_next(handler):
    async def main():
        async with pool_of() as pool:
            first = await run(pool, handler, text="ä\0\ud800", size=1.5)
            second = await run(pool, handler)
            assert first["payload"] == {"text": "ä\0\ud800", "size": 1.5}
            assert os.getpid() != first["pid"] == second["pid"]
            assert pool.process_ids == [first["pid"]]

    asyncio.run(main())


def test_job_and_context_arrive_whole():
    async def main():
        async with pool_of() as pool:
            worker = uuid4()
            one = job(handlers.about, 7)
            one.attempt, one.timeout, one.created_at = 3, 50.0, datetime(2020, 1, 1, tzinfo=UTC)
            seen = await pool.run(handlers.about, one, worker_id=worker)
            assert 30 < seen.pop("left") <= 50
            assert seen == {
                "id": 7,
                "state": "PROCESSING",
                "year": 2020,
                "attempt": 3,
                "token": [7, 3],
                "cancelled": False,
                "worker": worker.hex,
                "group": True,
            }
            adder = handlers.Adder(more=10)
            payload = {"a": 1, "b": 2}
            assert await pool.run(adder.execute, Job(1, "add", payload), payload_model=handlers.Numbers) == 13

    asyncio.run(main())


def test_what_a_process_cannot_have_is_said():
    with pytest.raises(AttributeError, match=r"context.connections does not exist with isolation='process'"):
        run_alone(handlers.asks_for_more)


@pytest.mark.parametrize(
    ("error", "kind", "name", "message"),
    [
        ("own", handlers.OwnError, "OwnError", "1 and 2"),
        ("key", LookupError, "KeyError", "'x'"),
        ("unicode", UnicodeDecodeError, "UnicodeDecodeError", "can't decode byte 0xff"),
        ("os", OSError, "FileNotFoundError", "[Errno 2] gone"),
        ("stop", IsolatedError, "StopIteration", "over"),
        ("exit", IsolatedError, "SystemExit", "3"),
        ("interrupt", IsolatedError, "KeyboardInterrupt", "stop"),
        ("bad", handlers.BadError, "BadError", "<BadError whose message could not be made>"),
        ("local", OSError, "LocalError", "here"),
        ("surrogate", ValueError, "ValueError", "\N{REPLACEMENT CHARACTER} ?"),
        ("long", ValueError, "ValueError", "xxx"),
    ],
)
def test_an_exception_comes_back_with_its_class_message_and_traceback(error, kind, name, message):
    with pytest.raises(IsolatedError) as caught:
        run_alone(handlers.raises, error=error)
    raised = caught.value
    assert isinstance(raised, kind)
    assert type(raised).__name__ == raised.class_name == name
    assert message in str(raised)
    assert len(str(raised)) <= 2000
    entry = decide(job(handlers.raises), raised, now=datetime.now(UTC)).error
    assert entry["class"] == name
    assert message in entry["message"]
    if error != "long":
        assert "isolated_handlers.py" in raised.traceback_text
        assert "isolated_handlers.py" in entry["traceback"]
        assert "isolated.py" not in raised.traceback_text


@pytest.mark.parametrize("raised", [True, False])
@pytest.mark.parametrize(
    ("wish", "kind", "attributes"),
    [
        ("retry", Retry, {"after": 7, "args": ("later",)}),
        ("snooze", Snooze, {"delay": 9}),
        ("discard", Discard, {"args": ("useless",)}),
        ("cancel", Cancel, {"args": ("not wanted",)}),
    ],
)
def test_a_signal_crosses_raised_or_returned(wish, kind, attributes, raised):
    with pytest.raises(kind) as caught:
        run_alone(handlers.signals, wish=wish, raised=raised)
    assert {name: getattr(caught.value, name) for name in attributes} == attributes


def test_an_invalid_payload_crosses_with_its_path():
    with pytest.raises(InvalidPayloadError, match=r"^no name \(at \$\.name\)$") as caught:
        run_alone(handlers.signals, wish="payload", raised=True)
    assert caught.value.path == "$.name"


def test_results_that_are_no_json_or_too_large_break_nothing(caplog):
    async def main():
        async with pool_of() as pool:
            assert "<object object" in await run(pool, handlers.returns, result="object")
            assert await run(pool, handlers.returns, result="nan") == "nan"
            assert await run(pool, handlers.returns, result="large") is None
            assert await run(pool, handlers.returns, result="none") is None
            assert await run(pool, handlers.returns, result="surrogate") == "\0 \ud800"
            with pytest.raises(RecursionError):
                await run(pool, handlers.returns, result="deep")
            assert (await run(pool, handlers.echo))["pid"] in pool.process_ids

    asyncio.run(main())
    assert "result of job 1 (returns) has 3000002 bytes" in caplog.text


def test_slots_run_at_once_each_in_its_own_process_and_the_loop_goes_on(tmp_path):
    async def main():
        async with pool_of(4) as pool:
            turns, jobs = 0, [run(pool, handlers.meets, number, path=str(tmp_path), count=4) for number in range(4)]
            together = asyncio.gather(*jobs)
            while not together.done():
                await asyncio.sleep(0)
                turns += 1
            assert len(set(await together)) == 4
            assert turns > 100
            await asyncio.gather(*(run(pool, handlers.echo, number) for number in range(40)))
            assert len(pool.process_ids) == 4

    asyncio.run(main())


def local_function():
    def local(job, context):
        return None

    return local


def of_the_program():
    def program(job, context):
        return None

    program.__module__ = "__main__"
    return program


@pytest.mark.parametrize(
    "handler",
    [
        lambda *_: None,
        local_function(),
        handlers.Locked().execute,
        of_the_program(),
        threading.Lock().acquire,
    ],
    ids=["lambda", "local", "with a lock", "of __main__", "of a lock"],
)
def test_a_handler_that_cannot_be_pickled_is_refused_by_name_with_the_remedy(handler):
    async def main():
        async with pool_of() as pool:
            with pytest.raises(
                ConfigurationError, match=r"executor of 'resize'.*top level of a module.*inside the han"
            ):
                pool.prepare("resize", handler)
            with pytest.raises(ConfigurationError, match="isolation='inline'"):
                await pool.run(handler, Job(1, "resize", {}))
            assert pool.process_ids == []

    asyncio.run(main())


def test_a_handler_whose_module_cannot_be_imported_there_is_named(tmp_path, monkeypatch):
    module = tmp_path / "vanishing_handlers.py"
    module.write_text("def handler(job, context):\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    handler = importlib.import_module("vanishing_handlers").handler
    text = module.read_text()
    module.unlink()

    async def main():
        async with pool_of() as pool:
            with pytest.raises(
                ConfigurationError, match=r"executor of 'handler' cannot be loaded.*ModuleNotFoundError"
            ):
                await run(pool, handler)
            module.write_text(text)
            assert (await run(pool, handlers.echo))["payload"] == {}

    asyncio.run(main())


def test_what_a_handler_prints_goes_where_the_worker_s_does(capfd):
    run_alone(handlers.prints)
    out, err = capfd.readouterr()
    assert out == "to stdout\n"
    assert "to stderr\n" in err


def test_the_child_s_program_imports_neither_driver_nor_worker():
    code = textwrap.dedent("""
        import asyncio, sys
        import isolated_handlers as handlers
        from pgqueue.job import Job
        from pgqueue.worker.isolation import ProcessPool
        async def main():
            pool = ProcessPool(1)
            print(*await pool.run(handlers.modules, Job(1, "modules", {})))
            await pool.close()
        asyncio.run(main())
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "pgqueue.job" in modules
    unwanted = {"psycopg", "sqlalchemy", "pydantic", "pgqueue.worker"}
    found = unwanted & set(modules)
    assert not found
    say(f"a spawned process: {len(modules)} modules, {len(found)} of {', '.join(sorted(unwanted))}")
