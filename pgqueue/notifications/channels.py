"""Where notifications go: the log, a webhook, anything Apprise knows. Each is an object with `async send(message)`.

Promises that what can pass is retried (an exception) and what cannot is not (`Discard`). The inbox is in inbox.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from pgqueue.errors import ConfigurationError
from pgqueue.notifications.config import NotificationPriority
from pgqueue.notifications.message import Message
from pgqueue.outcome import Discard, Retry

logger = logging.getLogger("pgqueue.notification")

LEVELS = {
    NotificationPriority.LOW: logging.INFO,
    NotificationPriority.MEDIUM: logging.INFO,
    NotificationPriority.HIGH: logging.WARNING,
    NotificationPriority.CRITICAL: logging.ERROR,
}
WEBHOOK_TIMEOUT = 10.0  # seconds
PASSING = frozenset({408, 409, 425, 429})
"""Answers below 500 that may be others the next time (RFC 9110, 8470, 6585)."""
MAX_RETRY_AFTER = 3600.0  # seconds


@runtime_checkable
class Channel(Protocol):
    """A way to people."""

    async def send(self, message: Message) -> None:
        """Deliver; an exception is retried, `Discard` is final. May be called again with the same `delivery_id`."""


class LogChannel:
    """One line on the logger `pgqueue.notification`; high priorities as warnings, critical ones as errors."""

    async def send(self, message: Message) -> None:
        """Write the line."""
        fields = {"job_id": message.job_id, "job_type": message.job_type, "event_type": message.event_type}
        logger.log(LEVELS[message.priority], "%s: %s", message.title, message.message, extra=fields)


class WebhookChannel:
    """A POST of the message as JSON, signed.

    `Webhook-Signature: t=<unix seconds>,v1=<hex>` is the HMAC-SHA256 of `<t>.<body>` under `secret`: compare it in
    constant time, and refuse an old `t`. `Idempotency-Key` is the delivery's id, the same over retries. Redirects are
    not followed. 2xx is delivered; 408, 409, 425, 429 and 5xx are retried (after `Retry-After`, if it says so); any
    other answer fails the delivery at once.

    Args:
        url: http or https.
        secret: the key of the signature; never logged.
        headers: sent besides.
        timeout: seconds.

    Raises:
        ConfigurationError: the URL is not http or https, or the secret is empty.
    """

    def __init__(
        self,
        url: str,
        secret: str | bytes,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = WEBHOOK_TIMEOUT,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError("the URL of a webhook must be http:// or https:// with a host")
        if not secret:
            raise ConfigurationError("the secret of a webhook is empty: its receiver could not tell who sent it")
        self._url = url
        self._secret = secret.encode() if isinstance(secret, str) else secret
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._opener = urllib.request.build_opener(_NoRedirects())

    async def send(self, message: Message) -> None:
        """Post it."""
        body = json.dumps(message.as_dict(), ensure_ascii=False, separators=(",", ":")).encode()
        await asyncio.to_thread(self._post, body, str(message.delivery_id))

    def _post(self, body: bytes, key: str) -> None:
        now = int(time.time())
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self._url,
            data=body,
            method="POST",
            headers={
                **self._headers,
                "Content-Type": "application/json",
                "Idempotency-Key": key,
                "Webhook-Signature": f"t={now},v1={signature(self._secret, now, body)}",
            },
        )
        try:
            with self._opener.open(request, timeout=self._timeout):
                return
        except urllib.error.HTTPError as error:
            with error:
                _refused(error.code, error.headers.get("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ConnectionError(f"the webhook's receiver cannot be reached: {reason}") from None


def signature(secret: bytes, at: int, body: bytes) -> str:
    """What `v1` of a webhook's signature is, for receivers that check it."""
    return hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()


def _refused(status: int, retry_after: str | None) -> None:
    if status >= 500 or status in PASSING:
        after = float(retry_after) if retry_after and retry_after.isdigit() else None
        raise Retry(None if after is None else min(after, MAX_RETRY_AFTER), f"the webhook's receiver answered {status}")
    raise Discard(f"the webhook's receiver answered {status}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the body and its signature to somebody else."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        return None


class AppriseChannel:
    """Anything that Apprise knows (chat, push, SMS …), by its URLs; extra `[apprise]`.

    Args:
        urls: Apprise URLs; never logged.

    Raises:
        ConfigurationError: Apprise is not installed, or it does not understand a URL.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        try:
            import apprise
        except ImportError:
            raise ConfigurationError("AppriseChannel needs the extra: pip install 'pgqueue[apprise]'") from None
        self._types = {
            NotificationPriority.LOW: apprise.NotifyType.INFO,
            NotificationPriority.MEDIUM: apprise.NotifyType.INFO,
            NotificationPriority.HIGH: apprise.NotifyType.WARNING,
            NotificationPriority.CRITICAL: apprise.NotifyType.FAILURE,
        }
        self._targets = apprise.Apprise()
        for number, url in enumerate(urls, 1):
            if not self._targets.add(url):
                raise ConfigurationError(f"Apprise does not understand URL number {number} of {len(urls)}")

    async def send(self, message: Message) -> None:
        """Notify every URL; one that fails has the whole tried again."""
        kind = self._types[message.priority]
        delivered = await self._targets.async_notify(title=message.title, body=message.message, notify_type=kind)
        if not delivered:
            raise ConnectionError("Apprise could not deliver to all of its URLs")
