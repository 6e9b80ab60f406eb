"""Channels that send: the log, a signed webhook to a real server, Apprise."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pgqueue import Discard, Registry, Retry
from pgqueue.errors import ConfigurationError, InvalidNameError
from pgqueue.notifications import (
    AppriseChannel,
    LogChannel,
    Message,
    NotificationPriority,
    WebhookChannel,
    register_channel,
)
from pgqueue.notifications.channels import signature

MESSAGE = Message(
    delivery_id=99,
    event_type="job.done",
    title="Resize Completed",
    message="fünf Bilder",
    priority=NotificationPriority.MEDIUM,
    tags=("a",),
    recipients=("ann",),
    job_id=7,
    job_type="resize",
    state="completed",
    at=datetime(2026, 11, 25, tzinfo=UTC),
)


@pytest.fixture
def receiver():
    """A server that keeps what it is sent and answers what it is told to."""

    class Receiver(BaseHTTPRequestHandler):
        answer, headers_back, seen = 204, {}, []

        def do_POST(self):
            self.seen.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(self.answer)
            for name, value in self.headers_back.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    Receiver.seen, Receiver.headers_back = [], {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        Receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
        yield Receiver
        server.shutdown()
        thread.join()


def send(channel, message=MESSAGE):
    asyncio.run(channel.send(message))


def test_a_webhook_posts_the_message_signed_and_with_the_deliverys_key(receiver):
    send(WebhookChannel(receiver.url, "s3cret", headers={"X-Team": "ops"}))
    ((path, headers, body),) = receiver.seen
    assert json.loads(body) == {**MESSAGE.as_dict(), "message": "fünf Bilder"}
    assert (path, headers["Content-Type"], headers["Idempotency-Key"]) == ("/hook", "application/json", "99")
    assert headers["X-Team"] == "ops"
    at, value = (part.split("=", 1)[1] for part in headers["Webhook-Signature"].split(","))
    assert value == signature(b"s3cret", int(at), body)
    assert value != signature(b"other", int(at), body)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_an_answer_that_may_pass_is_retried_when_the_receiver_says(receiver, status):
    receiver.answer, receiver.headers_back = status, {"Retry-After": "7"}
    with pytest.raises(Retry, match=str(status)) as raised:
        send(WebhookChannel(receiver.url, "s3cret"))
    assert raised.value.after == 7.0


@pytest.mark.parametrize("status", [400, 401, 404, 410, 302])
def test_an_answer_that_is_final_ends_the_delivery_and_a_redirect_is_not_followed(receiver, status):
    receiver.answer, receiver.headers_back = status, {"Location": receiver.url + "/elsewhere"}
    with pytest.raises(Discard, match=str(status)):
        send(WebhookChannel(receiver.url, "s3cret"))
    assert [path for path, _, _ in receiver.seen] == ["/hook"]


def test_a_receiver_that_is_away_is_an_error_without_the_url():
    with pytest.raises(ConnectionError) as raised:
        send(WebhookChannel("http://127.0.0.1:1/token-in-the-path", "s3cret", timeout=2))
    assert "token" not in str(raised.value)


@pytest.mark.parametrize(("url", "secret"), [("ftp://x/", "s"), ("http:///x", "s"), ("x", "s"), ("http://x/", "")])
def test_a_webhook_that_cannot_work_is_refused_when_it_is_made(url, secret):
    with pytest.raises(ConfigurationError):
        WebhookChannel(url, secret)


@pytest.mark.parametrize(
    ("priority", "level"), [("low", "INFO"), ("medium", "INFO"), ("high", "WARNING"), ("critical", "ERROR")]
)
def test_the_log_line_is_as_severe_as_the_priority(caplog, priority, level):
    with caplog.at_level(logging.INFO, "pgqueue.notification"):
        send(LogChannel(), dataclasses.replace(MESSAGE, priority=NotificationPriority(priority)))
    (record,) = caplog.records
    assert (record.levelname, record.message) == (level, "Resize Completed: fünf Bilder")
    assert (record.job_id, record.event_type) == (7, "job.done")


@pytest.mark.filterwarnings("ignore:.*imghdr:DeprecationWarning")  # Apprise's own import
def test_apprise_delivers_to_its_urls(receiver):
    send(AppriseChannel([receiver.url.replace("http://", "json://")]))
    ((_, _, body),) = receiver.seen
    assert (json.loads(body)["title"], json.loads(body)["message"]) == ("Resize Completed", "fünf Bilder")
    receiver.answer = 500
    with pytest.raises(ConnectionError):
        send(AppriseChannel([receiver.url.replace("http://", "json://")]))
    with pytest.raises(ConfigurationError, match="number 1 of 1") as raised:
        AppriseChannel(["nonsense-secret"])
    assert "secret" not in str(raised.value)


def test_a_channel_is_registered_as_a_job_type_of_its_own():
    registry = Registry()
    register_channel(registry, "ops", LogChannel(), max_attempts=3)
    registration = registry.get("notify:ops")
    assert (registration.max_attempts, registration.timeout) == (3, 60.0)
    with pytest.raises(ConfigurationError, match="registered already"):
        register_channel(registry, "ops", LogChannel())
    with pytest.raises(ConfigurationError, match="send"):
        register_channel(registry, "other", object())
    with pytest.raises(InvalidNameError):
        register_channel(registry, "a b", LogChannel())
