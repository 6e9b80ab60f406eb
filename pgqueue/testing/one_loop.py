"""What lets the engine of the tests do with one event loop and one session what a dispatcher does with many."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pgqueue import db
from pgqueue.dispatcher.control import ControlLoop
from pgqueue.dispatcher.sessions import Sessions


class SameLoop(ControlLoop):
    """Stands for the control loop where it is the loop that runs already; starts and ends nothing."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()


@dataclass(frozen=True, slots=True)
class OneSession(Sessions):
    """One session for all that happens in turn, made again when it is lost; completions have their own."""

    opened: list[db.AsyncConnection] = field(default_factory=list)

    async def plain(self) -> db.AsyncConnection:
        """The session."""
        if not self.opened or self.opened[-1].closed:
            connection = await self._open()
            connection.close = _stay_open  # type: ignore[method-assign] # each part closes what it takes for its own
            self.opened.append(connection)
        return self.opened[-1]

    async def leader(self) -> db.AsyncConnection:
        """The same."""
        return await self.plain()

    async def dispatch(self) -> db.AsyncConnection:
        """The same."""
        return await self.plain()

    async def maintenance(self) -> db.AsyncConnection:
        """The same."""
        return await self.plain()

    async def end(self) -> None:
        """End it."""
        for connection in self.opened:
            await type(connection).close(connection)


async def _stay_open() -> None:
    """The engine closes it."""
