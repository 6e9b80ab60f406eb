"""`sslmode=verify-full` on a server with a certificate of the test's own: kept everywhere, else refused."""

from __future__ import annotations

import psycopg
import pytest
import trustme
from psycopg.conninfo import make_conninfo
from server_tools import Server, directory
from support import finished

from pgqueue import Dispatcher, Queue, Registry, Settings, migrate
from pgqueue.errors import DatabaseUnavailableError


@pytest.fixture
def server():
    """A server that talks TLS alone, and the file of its certificate's issuer."""
    issuer = trustme.CA()
    certificate = issuer.issue_cert("localhost")  # and not 127.0.0.1
    with directory() as base:
        made = Server(base, "tls")
        try:
            made.create()
            made.write("server.key", certificate.private_key_pem.bytes().decode())
            made.write("server.crt", b"".join(blob.bytes() for blob in certificate.cert_chain_pems).decode())
            made.write("pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\n")
            made.start(ssl="on", fsync="off")
            root = base / "root.crt"
            issuer.cert_pem.write_to_path(root)
            yield made, root
        finally:
            made.kill()


def test_a_queue_runs_over_a_verified_connection_and_another_host_or_issuer_is_refused(server, tmp_path):
    made, root = server
    verified = make_conninfo(
        made.dsn, host="localhost", hostaddr="127.0.0.1", sslmode="verify-full", sslrootcert=str(root)
    )
    migrate.upgrade(verified)
    registry = Registry()
    registry.register("paint", lambda _job, _context: {"ok": True})
    dispatcher = Dispatcher(Settings(database_url=verified, heartbeat_interval=0.2), registry)
    dispatcher.start()
    try:
        with Queue(verified) as queue:
            assert finished(queue, queue.enqueue("paint", {})).state == "completed"
            connections = made.sql(
                "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                " WHERE backend_type = 'client backend' AND application_name LIKE 'pgqueue%'"
            )
            assert connections[0][0] > 3
            assert connections[0][1] is True
    finally:
        dispatcher.stop()

    stranger = tmp_path / "stranger.crt"
    trustme.CA().cert_pem.write_to_path(stranger)
    for changed, said in (
        ({"host": "127.0.0.1"}, "127.0.0.1"),  # the certificate is for another name
        ({"host": "queue.example", "hostaddr": "127.0.0.1"}, "queue.example"),
        ({"sslrootcert": str(stranger)}, "certificate verify failed"),
        ({"sslmode": "disable", "sslrootcert": ""}, "no encryption"),
    ):
        with (
            Queue(make_conninfo(verified, connect_timeout=5, **changed)) as refused,
            pytest.raises(DatabaseUnavailableError, match=said),
        ):
            refused.enqueue("paint", {})
        with pytest.raises(psycopg.OperationalError, match=said):
            psycopg.connect(make_conninfo(verified, **changed))
