"""The browser's session: a signed cookie with the digest of the token it was opened with, and the form token. Pure.

The table of tokens stays the truth: the digest is looked up at every request, so a revoked token ends its sessions at
once. The cookie is worth nothing without this server's key; the key is made when the server starts, unless
`api_token` is set, from which it is derived: then servers that share it share their sessions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

COOKIE = "pgqueue_session"
LIFETIME = 12 * 3600
"""Seconds after which one signs in again."""
_SHAPE = struct.Struct(">32sQ18s")  # with its signature 90 bytes: base64 without padding, which a cookie would quote
_MAC = 32


@dataclass(frozen=True, slots=True)
class Session:
    """`digest` of the token; `nonce` is this session's own; `expires` is a Unix time."""

    digest: bytes
    expires: int
    nonce: bytes


class Sessions:
    """Makes and reads cookies.

    Args:
        api_token: the setting of this name; None: the key lives as long as this object.
    """

    def __init__(self, api_token: str | None = None) -> None:
        seed = secrets.token_bytes(32) if api_token is None else api_token.encode()
        self._key = hmac.digest(seed, b"pgqueue session", "sha256")

    def open(self, digest: bytes) -> str:
        """The cookie of a new session."""
        body = _SHAPE.pack(digest, int(time.time()) + LIFETIME, secrets.token_bytes(18))
        return base64.urlsafe_b64encode(body + self._sign(b"cookie", body)).decode()

    def read(self, headers: Mapping[bytes, bytes]) -> Session | None:
        """The session of a request; None without one that holds."""
        text = cookie_of(headers.get(b"cookie", b""))
        try:
            raw = base64.b64decode(text, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        body, mac = raw[:-_MAC], raw[-_MAC:]
        if len(body) != _SHAPE.size or not hmac.compare_digest(mac, self._sign(b"cookie", body)):
            return None
        digest, expires, nonce = _SHAPE.unpack(body)
        return Session(digest, expires, nonce) if expires > time.time() else None

    def form_token(self, session: Session | None) -> str:
        """What every form of this session carries, and no other site can know."""
        return self._sign(b"form", b"" if session is None else session.nonce).hex()

    def is_form_token(self, given: str, session: Session | None) -> bool:
        """True if `given` is this session's."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.form_token(session).encode())

    def _sign(self, purpose: bytes, text: bytes) -> bytes:
        return hmac.new(self._key, purpose + b"\0" + text, hashlib.sha256).digest()


def cookie_of(header: bytes) -> bytes:
    """The session's cookie among those of a Cookie header; empty without it."""
    for part in header.split(b";"):
        name, _, value = part.strip().partition(b"=")
        if name == COOKIE.encode():
            return value
    return b""
