"""The listener hears every message of its channels, on uvloop and on Python's own loop, and ends with its session."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psycopg
import pytest
import uvloop

from pgqueue.dispatcher import listener
from pgqueue.dispatcher.listener import Listener
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.errors import DatabaseError

END_LISTENERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request):
    """Run a coroutine on a loop of this kind."""

    def on_loop(coroutine):
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(coroutine)

    return on_loop


class Heard:
    """A listener of two channels, and what it heard."""

    def __init__(self, dsn):
        self.messages = asyncio.Queue()
        self.channels = []
        channels = {name: lambda text, name=name: self.hear(name, text) for name in ("one", "two")}
        self.listener = Listener(Sessions(dsn, uuid4(), 3.0), channels, self.channels.append)

    def hear(self, name, text):
        if text == "raise":
            raise ValueError("a callback's own error")
        self.messages.put_nowait((name, text))

    async def __aenter__(self):
        self.listening = asyncio.ensure_future(self.listener.run_once())
        assert await self.next(2) == [("one", ""), ("two", "")]
        return self

    async def __aexit__(self, *_raised):
        self.listening.cancel()
        await asyncio.gather(self.listening, return_exceptions=True)

    async def next(self, number):
        async with asyncio.timeout(10):
            return [await self.messages.get() for _ in range(number)]


def notify(dsn, *messages):
    with psycopg.connect(dsn, autocommit=True) as connection:
        for channel, text in messages:
            connection.execute("SELECT pg_notify(%s, %s)", [channel, text])


def test_messages_come_in_order_each_to_its_channel_after_a_wake_of_all(run, dsn):
    sent = [(("one", "two")[number % 2], f"{number} " + "x" * (number * 30)) for number in range(200)]

    async def hears():
        async with Heard(dsn) as heard:
            await asyncio.to_thread(notify, dsn, *sent)
            assert await heard.next(len(sent)) == sent
            assert heard.channels == [channel for channel, _ in sent], "only what was really sent"

    run(hears())


def test_after_silence_it_probes_and_wakes_all_and_hears_on(run, dsn, monkeypatch):
    monkeypatch.setattr(listener, "PROBE_EVERY", 0.05)

    async def hears():
        async with Heard(dsn) as heard:
            assert await heard.next(4) == 2 * [("one", ""), ("two", "")]
            await asyncio.to_thread(notify, dsn, *[("one", str(number)) for number in range(100)])
            told = []
            while len(told) < 100:
                told += [text for _, text in await heard.next(1) if text]
            assert told == [str(number) for number in range(100)]

    run(hears())


@pytest.mark.parametrize(
    ("ended_by", "error", "said"),
    [("session", DatabaseError, "server closed the connection"), ("callback", ValueError, "a callback's own error")],
)
def test_what_ends_it_is_raised_and_the_next_sessions_hear(run, dsn, sql, ended_by, error, said):
    async def hears():
        async with Heard(dsn) as heard:
            if ended_by == "session":
                await asyncio.to_thread(sql, END_LISTENERS)
            else:
                await asyncio.to_thread(notify, dsn, ("one", "raise"))
            with pytest.raises(error, match=said):
                async with asyncio.timeout(10):
                    await heard.listening
            # One of these gets the number that the lost socket had.
            connections = [await psycopg.AsyncConnection.connect(dsn) for _ in range(10)]
            for connection in connections:
                await connection.execute("SELECT 1")
                await connection.close()
            async with heard:
                await asyncio.to_thread(notify, dsn, ("two", "again"))
                assert await heard.next(1) == [("two", "again")]

    run(hears())
