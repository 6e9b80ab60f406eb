"""Connections and pools: `run`, `arun` execute a `Statement`; only this, pipeline and callers name a driver.

Owns how pgqueue connects (time-outs, keepalives, application_name), the pools behind Queue and AsyncQueue, the
pipelined fenced batch, and the translation of driver errors into pgqueue's. Opens nothing before first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgqueue import pipeline, sql, store
from pgqueue.config import mask_password
from pgqueue.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    NotLeaderError,
    SchemaError,
)
from pgqueue.store import Statement

T = TypeVar("T")
Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]

CONNECT_TIMEOUT = 5  # seconds for one attempt; libpq's least is 2
POOL_TIMEOUT = 8.0  # seconds an enqueue waits for a connection before it says the database is away
POOL_SIZE = 10
# A blackholed peer is noticed in about 9 s (reliability: TCP partition); libpq's defaults take two hours.
KEEPALIVES = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 2, "tcp_user_timeout": 9000}

HOLDER_PREFIX = "pgqueue/"
"""What the names of a dispatcher's sessions begin with; its holder id follows."""
SCHEMA_LEVEL = 10
"""The revision number this code needs; an older schema gives exit code 4."""

_UNAVAILABLE = frozenset({"57P01", "57P02", "57P03", "57P05", "53300", "25006", "25P03"})
_SCHEMA = frozenset({"42P01", "3F000", "42883", "42703", "42704"})


def conninfo(url: str, purpose: str) -> str:
    """`url` with pgqueue's connection defaults where it says nothing itself.

    Raises:
        ConfigurationError: libpq cannot read the URL.
    """
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error as error:
        # libpq quotes the part it stumbled over, which may be a part of the password.
        text = re.sub(r'".*"', '"***"', str(error).strip(), flags=re.DOTALL)
        raise ConfigurationError(f"database URL cannot be read: {text}") from None
    if not re.fullmatch(r"[\d,]*", str(given.get("port") or "")):
        raise ConfigurationError(
            "database URL cannot be read: the port is not a number; "
            "in a URL, write / @ : % of a password as %2F %40 %3A %25"
        )
    defaults: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT, "application_name": purpose, **KEEPALIVES}
    if "," in str(given.get("host") or ""):
        defaults["target_session_attrs"] = "read-write"
    if purpose.startswith(HOLDER_PREFIX):
        given["application_name"] = purpose  # a takeover finds a holder's sessions by it
    # COPY's binary format has text as it is, and pgqueue writes UTF-8 whatever the environment or the URL says.
    return make_conninfo(**{**defaults, **given, "client_encoding": "utf8"})


def of_database(url: str, database: str) -> str:
    """The URL of another database on the same server, as a libpq key=value string."""
    with translated():
        return make_conninfo(url, dbname=database)


def describe(url: str) -> str:
    """`url` for people: without its password."""
    return mask_password(url) if url != "postgresql://" else "libpq's PG* variables"


def connect(url: str, *, purpose: str = "pgqueue", autocommit: bool = False, **options: Any) -> Connection:
    """A new connection of one's own; `options` are libpq's and beat the URL's."""
    with translated():
        connection = psycopg.connect(conninfo(url, purpose), autocommit=autocommit, **options)
        prepare_session(connection)
        return connection


async def aconnect(url: str, *, purpose: str = "pgqueue", prepares: bool = True) -> AsyncConnection:
    """A new autocommit connection of one's own, for a control loop; what it `prepares` stays for its session."""
    with translated():
        connection = await psycopg.AsyncConnection.connect(
            conninfo(url, purpose), autocommit=True, prepare_threshold=None
        )
        try:
            await aprepare_session(connection, prepares=prepares)
        except BaseException:  # cancellation too: nobody else has it yet
            await connection.close()
            raise
        return connection


def prepare_session(connection: Connection) -> None:
    """Make the session pgqueue's own, its transactions READ COMMITTED READ WRITE where the server says otherwise.

    Behind a pooler nothing is prepared: the next transaction may meet another session.
    """
    *defaults, backend = run(connection, store.statistics.session_defaults())
    if defaults != ["read committed", "off"]:
        connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE")
    if not connection.autocommit:
        connection.commit()
    pipeline.adopt(connection, prepares=bool(backend == connection.info.backend_pid))


async def aprepare_session(connection: AsyncConnection, *, prepares: bool = True) -> None:
    """As `prepare_session`, awaited."""
    *defaults, backend = await arun(connection, store.statistics.session_defaults())
    if defaults != ["read committed", "off"]:
        await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE")
    pipeline.adopt(connection, prepares=prepares and bool(backend == connection.info.backend_pid))


def run(connection: Connection, statement: Statement[T], schema: str = "pgqueue") -> T:
    """Execute `statement` on `connection`, in whatever transaction it is in."""
    if _ours_in_autocommit(connection):
        text, names = sql.numbered(statement.name, schema)
        try:
            rows = pipeline.execute_sync(connection, text, [statement.params[name] for name in names])
        except (psycopg.Error, OSError) as error:
            raise translate(error) from error
        return statement.parse(rows)
    with translated():
        cursor: psycopg.Cursor[TupleRow] = psycopg.Cursor(connection, row_factory=tuple_row)
        with cursor:
            cursor.execute(sql.encoded(statement.name, schema), statement.params, binary=True)
            return statement.parse(list(cursor.fetchall()) if _has_rows(cursor) else [])


async def arun(connection: AsyncConnection, statement: Statement[T], schema: str = "pgqueue") -> T:
    """As `run`, awaited."""
    if _ours_in_autocommit(connection):
        return (await arun_together(connection, [statement], schema))[0]  # type: ignore[no-any-return]
    with translated():
        cursor: psycopg.AsyncCursor[TupleRow] = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        async with cursor:
            await cursor.execute(sql.encoded(statement.name, schema), statement.params, binary=True)
            return statement.parse(list(await cursor.fetchall()) if _has_rows(cursor) else [])


def _ours_in_autocommit(connection: Connection | AsyncConnection) -> bool:
    """True if a statement can go without psycopg's cursor: no BEGIN has to go first, what is prepared is our affair."""
    return connection.autocommit and pipeline.prepares(connection) is not None


def _has_rows(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> bool:
    """In a caller's pipeline the answer is still to come: fetching it is what waits for it."""
    return cursor.description is not None or cursor.connection.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF


async def arun_together(connection: AsyncConnection, statements: Sequence[Statement[Any]], schema: str) -> list[Any]:
    """Execute `statements` as one transaction in one round trip on an autocommit connection.

    The server takes what a pipeline sends before its sync as one transaction, so a fence that raises as the first
    statement undoes and skips all that follows; each statement still sees its own snapshot.
    """
    sent: list[tuple[bytes, Sequence[Any]]] = []
    for statement in statements:
        text, names = sql.numbered(statement.name, schema)
        sent.append((text, [statement.params[name] for name in names]))
    with translated():
        answers = await pipeline.execute(connection, sent)
    return [statement.parse(rows) for statement, rows in zip(statements, answers, strict=True)]


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn a driver's error into pgqueue's."""
    try:
        yield
    except (psycopg.Error, PoolTimeout, OSError) as error:
        raise translate(error) from error


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """A transaction whose BEGIN and COMMIT are translated; what the body raises passes as it is."""
    raised: BaseException | None = None
    try:
        with connection.transaction():
            try:
                yield
            except BaseException as error:
                raised = error
                raise
    except (psycopg.Error, OSError) as error:
        if error is raised:
            raise
        raise translate(error) from error


@contextlib.asynccontextmanager
async def atransaction(connection: AsyncConnection) -> AsyncIterator[None]:
    """As `transaction`, awaited."""
    raised: BaseException | None = None
    try:
        async with connection.transaction():
            try:
                yield
            except BaseException as error:
                raised = error
                raise
    except (psycopg.Error, OSError) as error:
        if error is raised:
            raise
        raise translate(error) from error


def translate(error: BaseException) -> DatabaseError | NotLeaderError:
    """The pgqueue error for a driver's `error` (psycopg's, or what SQLAlchemy's drivers raise)."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    said = " ".join(str(error).split()).partition(" This probably means")[0]  # libpq's guess helps nobody
    text = mask_password(said) or type(error).__name__
    if state == "PQ001":
        return NotLeaderError(text)
    if state in _SCHEMA:
        return SchemaError(f"pgqueue's schema does not fit this code ({text}): run `pgqueue migrate`")
    lost = state is None and isinstance(
        error, psycopg.OperationalError | psycopg.InterfaceError | PoolTimeout | OSError
    )
    if lost or state in _UNAVAILABLE or (state or "").startswith("08"):
        return DatabaseUnavailableError(f"database unavailable: {text}")
    return DatabaseError(text)


def is_about_data(error: DatabaseError) -> bool:
    """True if the server or the driver refused a value: the same statement will fail again."""
    state = getattr(error.__cause__, "sqlstate", None) or ""
    return isinstance(error.__cause__, psycopg.DataError) or state.startswith(("22", "54"))


def was_sent(error: DatabaseUnavailableError) -> bool:
    """False if there was no connection to be had, so that nothing can have been sent."""
    return error.__cause__ is not None and not isinstance(error.__cause__, PoolTimeout)


def may_have_committed(error: BaseException) -> bool:
    """True unless the server itself said that it did not."""
    if isinstance(error, DatabaseUnavailableError | asyncio.CancelledError):
        return True
    return getattr(error.__cause__, "sqlstate", None) is None


def is_alive(connection: Connection | AsyncConnection) -> bool:
    """False if an idle connection's peer has gone; costs no round trip.

    An idle socket that is readable brings a notice or the end; reading on past the notices meets the end.
    """
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    try:
        while poller.poll(0):
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return connection.pgconn.status == psycopg.pq.ConnStatus.OK


async def _aconfigure(connection: AsyncConnection) -> None:
    await aprepare_session(connection)


def make_pool(url: str, *, size: int = POOL_SIZE) -> ConnectionPool[Connection]:
    """A pool of autocommit connections, opened now; connects on demand."""
    pool = ConnectionPool(
        conninfo(url, "pgqueue"),
        kwargs={"autocommit": True},
        min_size=0,
        max_size=size,
        timeout=POOL_TIMEOUT,
        reconnect_timeout=POOL_TIMEOUT,
        configure=prepare_session,
        open=False,
        name="pgqueue",
    )
    pool.open()
    return pool


async def make_async_pool(url: str, *, size: int = POOL_SIZE) -> AsyncConnectionPool[AsyncConnection]:
    """As `make_pool`, for one event loop."""
    pool = AsyncConnectionPool(
        conninfo(url, "pgqueue"),
        kwargs={"autocommit": True},
        min_size=0,
        max_size=size,
        timeout=POOL_TIMEOUT,
        reconnect_timeout=POOL_TIMEOUT,
        configure=_aconfigure,
        open=False,
        name="pgqueue",
    )
    await pool.open()
    return pool


def pool_use(pool: Any) -> dict[str, int]:
    """A pool's connections `in_use` and `idle`, callers `waiting`, `max` connections; all 0 without a pool."""
    stats = pool.get_stats() if pool is not None else {}
    size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
    waiting, most = stats.get("requests_waiting", 0), stats.get("pool_max", 0)
    return {"in_use": max(0, size - idle), "idle": idle, "waiting": waiting, "max": most}


class pooled:  # noqa: N801 - read as a function; a generator's context costs several times as much
    """A connection of `pool`; none to be had is DatabaseUnavailableError."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: ConnectionPool[Connection]) -> None:
        self._pool = pool

    def __enter__(self) -> Connection:
        try:
            connection = self._pool.getconn()
            for _ in range(2 * POOL_SIZE):  # the pool's own check would back off for seconds after a server's restart
                if is_alive(connection):
                    break
                self._pool.putconn(connection)
                connection = self._pool.getconn()
        except (psycopg.Error, PoolTimeout, OSError) as error:
            raise translate(error) from error
        self._connection = connection
        return connection

    def __exit__(self, *_raised: object) -> None:
        self._pool.putconn(self._connection)


@contextlib.asynccontextmanager
async def apooled(pool: AsyncConnectionPool[AsyncConnection]) -> AsyncIterator[AsyncConnection]:
    """As `pooled`, awaited."""
    with translated():
        connection = await pool.getconn()
        for _ in range(2 * POOL_SIZE):
            if is_alive(connection):
                break
            await pool.putconn(connection)
            connection = await pool.getconn()
    try:
        yield connection
    finally:
        await pool.putconn(connection)


def check_schema(level: tuple[int, int] | None, needed: int = SCHEMA_LEVEL) -> None:
    """Raise unless code that needs schema level `needed` can work with a schema at `level` (number, serves from).

    Raises:
        SchemaError: missing, older than needed, or newer and no longer serving this code.
    """
    if level is None:
        raise SchemaError("pgqueue's schema is missing in this database: run `pgqueue migrate`")
    number, serves_from = level
    if number < needed:
        raise SchemaError(f"pgqueue's schema is at level {number}, this code needs {needed}: run `pgqueue migrate`")
    if needed < serves_from:
        raise SchemaError(
            f"pgqueue's schema is at level {number} and serves code from level {serves_from} on, "
            f"this code is at {needed}: upgrade pgqueue here"
        )


def read_schema_level(connection: Connection, schema: str) -> tuple[int, int] | None:
    """The schema's level, or None without a schema."""
    if not run(connection, store.statistics.schema_exists(), schema):
        return None
    return run(connection, store.statistics.schema_level(), schema)


async def aread_schema_level(connection: AsyncConnection, schema: str) -> tuple[int, int] | None:
    """As `read_schema_level`, awaited."""
    if not await arun(connection, store.statistics.schema_exists(), schema):
        return None
    return await arun(connection, store.statistics.schema_level(), schema)
