"""A program of its own on Django's psycopg2 backend: enqueues in its transactions, prints what it saw.

Django takes psycopg 3 where it can be imported, which it can wherever pgqueue is: hidden from it here.
"""

from __future__ import annotations

import importlib
import json
import sys

sys.modules["psycopg"] = None  # type: ignore[assignment]
importlib.import_module("django.db.backends.postgresql.base")
del sys.modules["psycopg"]

from django.conf import settings  # noqa: E402
from django.db import connection, transaction  # noqa: E402

from pgqueue import NewJob, Queue  # noqa: E402


def main() -> None:
    settings.configure(DATABASES={"default": json.loads(sys.argv[1])}, USE_TZ=False, TIME_ZONE="Asia/Tokyo")
    with Queue(sys.argv[2]) as queue:
        with transaction.atomic():
            queue.enqueue("kept", {"n": 1}, connection=connection)
            inside = queue.counts()["pending"]
        try:
            with transaction.atomic():
                queue.enqueue_many([NewJob("gone", unique_key=str(n)) for n in range(300)], connection=connection)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        job = queue.enqueue("kept", {"text": "%s ä"}, connection=connection)
        print(
            json.dumps(
                {
                    "driver": type(connection.connection).__module__,
                    "inside": inside,
                    "pending": queue.counts()["pending"],
                    "same": queue.get(job.id) == job,
                }
            )
        )


main()
