"""Databases for tests, each as the template is: made anew where a used one cannot be put back to that.

Putting back costs a tenth of making: the tables that were written are emptied, the template's own rows and its
sequences are restored. Promises that what a test is given cannot be told from a new copy: the same catalogs by content
(any change of the schema, of rights or of settings), no rows, statistics or sessions of another test, and a name of its
own, so that a process which a test left behind does not find it. A database where one of these fails is dropped.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from pgqueue import db
from pgqueue.testing import databases

TEMPLATE = "pgqueue_template"

# What a command of SQL can change in a database, but for the tables' rows, files and sizes. A copy has the template's
# own row versions, so of a catalog the number of rows, and of those since, are enough; whatever is made or removed
# shows in pg_depend. pg_class is written by TRUNCATE too, and is compared by its columns. A table
# that was analysed, which shows in its reltuples, has statistics that would be another test's.
CATALOGS = ("attribute", "constraint", "default_acl", "depend", "index", "namespace", "proc", "publication", "trigger")
_STATE = sql.SQL("""
    SELECT (SELECT md5(string_agg(ROW(oid, relname, relnamespace, relowner, relkind, relnatts, relchecks,
                                      relhastriggers, relrowsecurity, relreplident, relispartition, reltablespace,
                                      relacl, reloptions, relpersistence)::text, '' ORDER BY oid))
            FROM pg_catalog.pg_class WHERE oid >= 16384),
           (SELECT ROW(datdba, datistemplate, datallowconn, datconnlimit, datacl)::text
            FROM pg_catalog.pg_database WHERE datname = current_database()),
           (SELECT count(*) FROM pg_catalog.pg_db_role_setting AS given
            JOIN pg_catalog.pg_database AS this ON this.oid = given.setdatabase WHERE datname = current_database()),
           (SELECT count(*) FROM pg_catalog.pg_class WHERE oid >= 16384 AND relkind IN ('r', 'p') AND reltuples >= 0),
           {catalogs}
""").format(
    catalogs=sql.SQL(", ").join(
        sql.SQL("(SELECT ROW(count(*), count(*) FILTER (WHERE age(xmin) < age(%(since)s::xid)))::text FROM {})").format(
            sql.Identifier("pg_catalog", f"pg_{name}")
        )
        for name in CATALOGS
    )
)
# The tables and schemas of a test's own, which are most of what is ever changed: object ids only grow.
_MARKS = "SELECT pg_current_xact_id()::xid::text, max(oid) FROM pg_catalog.pg_class"
_ADDED = """
    SELECT 'SCHEMA', quote_ident(nspname) FROM pg_catalog.pg_namespace WHERE oid > %(last)s AND nspname !~ '^pg_'
    UNION ALL
    SELECT 'TABLE', oid::regclass::text FROM pg_catalog.pg_class
    WHERE oid > %(last)s AND relkind IN ('r', 'p') AND relnamespace <= %(last)s
"""
# Rows of a small table are deleted, which takes a twentieth of a TRUNCATE. What that leaves is not seen: for the
# planner a table that was never vacuumed or analysed has ten pages at least.
_TABLES = """
    SELECT oid::regclass::text, pg_relation_size(oid) > 4 * 8192 FROM pg_catalog.pg_class
    WHERE relkind = 'r' AND oid >= 16384 AND pg_relation_size(oid) > 0
"""
# None is used in the template, so a start value is all that there is to one.
_RESTART = """
    SELECT setval(seqrelid, seqstart, false) FROM pg_catalog.pg_sequence
    WHERE pg_sequence_last_value(seqrelid) IS NOT NULL
"""
# Sessions end before the rename, which nobody may be connected for; after it nobody knows the name.
_END_SESSIONS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity
    WHERE datname = %s AND backend_type = 'client backend'
"""


class DatabasePool:
    """The databases of one process.

    Args:
        server_url: of a database whose user may create others.
        template: what they are like; nobody is connected to it.
        prefix: of their names.
    """

    def __init__(self, server_url: str, template: str, prefix: str) -> None:
        self._server_url = server_url
        self._template = template
        self._names = (f"{prefix}_{number}" for number in itertools.count())
        self._free: list[str] = []
        self._like: _Contents | None = None
        self._server = psycopg.connect(server_url, autocommit=True)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """One for the time of the block; its URL."""
        name = self._free.pop() if self._free else self._make()
        try:
            yield db.of_database(self._server_url, name)
        finally:
            self._put_back(name)

    def close(self) -> None:
        """Drop those that wait for a test."""
        while self._free:
            databases.drop_database(self._server_url, self._free.pop())
        self._server.close()

    def _make(self) -> str:
        name = next(self._names)
        url = databases.create_database(self._server_url, name, self._template, copy_files=True)
        if self._like is None:
            with psycopg.connect(url, autocommit=True) as connection:
                self._like = _Contents(connection)
        return name

    def _put_back(self, name: str) -> None:
        renamed = next(self._names)
        try:
            self._server.execute(_END_SESSIONS, [name])
            self._server.execute(f'ALTER DATABASE "{name}" RENAME TO "{renamed}"'.encode())
            name = renamed
            with psycopg.connect(db.of_database(self._server_url, name), autocommit=True) as connection:
                restored = self._like is not None and self._like.restore(connection)
        except psycopg.Error:  # somebody is connected again, it is gone, or what a test made of it refuses
            restored = False
        if restored:
            self._free.append(name)
        else:
            databases.drop_database(self._server_url, name)


class _Contents:
    """What a new database has, read from one: its catalogs' state and the rows of its tables."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._since, self._last = connection.execute(_MARKS).fetchone() or ()
        self._state = self._state_of(connection)
        self._rows = {name: _rows(connection, name) for name, _ in connection.execute(_TABLES)}

    def restore(self, connection: psycopg.Connection[Any]) -> bool:
        """Make a database's rows and sequences these again; False where more than them is different."""
        if self._state_of(connection) != self._state:
            for kind, name in connection.execute(_ADDED, {"last": self._last}).fetchall():
                connection.execute(f"DROP {kind} IF EXISTS {name} CASCADE".encode())
            if self._state_of(connection) != self._state:
                return False
        written = dict(connection.execute(_TABLES).fetchall())
        for name, rows in self._rows.items():
            if _rows(connection, name) == rows:
                del written[name]
        with connection.transaction():
            if large := [name for name, is_large in written.items() if is_large]:
                connection.execute(f"TRUNCATE {', '.join(large)}".encode())
            for name in written.keys() - large:
                connection.execute(f"DELETE FROM {name}".encode())
            for name in self._rows.keys() & written:
                with connection.cursor().copy(f"COPY {name} FROM STDIN".encode()) as copy:
                    copy.write(self._rows[name])
            connection.execute(_RESTART)
        connection.execute("SELECT pg_stat_force_next_flush()")  # or what was just written counts after the reset
        connection.execute("SELECT pg_stat_reset()")
        return True

    def _state_of(self, connection: psycopg.Connection[Any]) -> object:
        return connection.execute(_STATE, {"since": self._since}).fetchone()


def _rows(connection: psycopg.Connection[Any], table: str) -> bytes:
    with connection.cursor().copy(f"COPY {table} TO STDOUT".encode()) as copy:
        return b"".join(bytes(part) for part in copy)
