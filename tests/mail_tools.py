"""A real SMTP server for the tests of mail, which can be stopped, started again, and told how to answer."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from support import free_port

from pgqueue.jobs.mail import SmtpSettings

USER, PASSWORD = "mailer", "correct horse battery staple"
SENDER = "The Shop <shop@example.com>"


class Certificates:
    """An authority of the test's own, and a certificate of it for localhost."""

    def __init__(self, directory: Any) -> None:
        authority = trustme.CA()
        self.file = directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.file))
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(self.context)


class SmtpServer:
    """An aiosmtpd on a port of its own, which it keeps over restarts.

    Attributes:
        received: (envelope, message) of each mail that was accepted.
        replies: answers to the next mails, one each, in the place of acceptance: `{"rcpt": ["550 no such user"]}`.
        before_reply: called when a mail has been taken and not yet acknowledged.
        silent: while it is set, no recipient is answered.
    """

    def __init__(self, **options: Any) -> None:
        self.received: list[tuple[Any, EmailMessage]] = []
        self.replies: dict[str, list[str]] = {"rcpt": [], "data": []}
        self.before_reply: Callable[[], None] | None = None
        self.silent = threading.Event()
        self._options = {"enable_SMTPUTF8": True, **options}
        self._tls = self._options.pop("ssl_context", None)
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread, asyncio.Server] | None = None
        self._transports: list[asyncio.BaseTransport] = []
        self.port = free_port()

    def start(self) -> SmtpServer:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        listening = loop.create_server(lambda: self._protocol(loop), "127.0.0.1", self.port, ssl=self._tls)
        self._running = loop, thread, asyncio.run_coroutine_threadsafe(listening, loop).result(30)
        return self

    def stop(self) -> None:
        """Stop, and cut every connection, as the end of a process does."""
        if self._running is not None:
            loop, thread, server = self._running
            asyncio.run_coroutine_threadsafe(self._cut(server), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            self._running = None

    def _protocol(self, loop: asyncio.AbstractEventLoop) -> SMTP:
        transports = self._transports

        class Recorded(SMTP):
            def connection_made(self, transport: Any) -> None:
                transports.append(transport)
                super().connection_made(transport)

        return Recorded(self, loop=loop, **self._options)

    async def _cut(self, server: asyncio.Server) -> None:
        server.close()
        for transport in self._transports:
            transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await closed()
        self._transports.clear()

    def __enter__(self) -> SmtpServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def settings(self, **options: Any) -> SmtpSettings:
        return SmtpSettings("localhost", SENDER, self.port, **{"security": "plain", "timeout": 5.0, **options})

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if self.silent.is_set():
            await asyncio.sleep(3600)
        if self.replies["rcpt"]:
            return self.replies["rcpt"].pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = BytesParser(policy=policy.default).parsebytes(envelope.content)
        if self.replies["data"]:
            return self.replies["data"].pop(0)
        self.received.append((envelope, message))
        if self.before_reply is not None:
            self.before_reply()
        return "250 Message accepted"


async def closed() -> None:
    """Give the loop the turns in which it closes the sockets of transports that were told to."""
    for _ in range(20):
        await asyncio.sleep(0)


def authenticate(server, session, envelope, mechanism, data):
    """Aiosmtpd's authenticator: one user, one password."""
    known = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=known, handled=known)


def with_auth(certificates: Certificates) -> SmtpServer:
    """A server that wants STARTTLS, then AUTH."""
    return SmtpServer(
        tls_context=certificates.context,
        require_starttls=True,
        auth_required=True,
        authenticator=authenticate,
    )


def parts(message: EmailMessage) -> tuple[str, str]:
    """Text and HTML of a mail."""
    text, html = message.get_body(("plain",)), message.get_body(("html",))
    assert text is not None
    assert html is not None
    return text.get_content().replace("\r\n", "\n"), html.get_content()
