"""`SmtpMailerService`: renders the mails and sends them by SMTP, with STARTTLS, TLS or plain, and AUTH.

Owns the connection's settings, the message's headers, and which failures are final. Promises that a mail whose job
runs again has the same Message-ID, that a password appears in no text and crosses no network unencrypted, and
that what a payload holds cannot make a header. Opens a connection for each mail and closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from pgqueue.errors import ConfigurationError, MailError, MailRefusedError
from pgqueue.jobs.mail import models
from pgqueue.jobs.mail.rendering import MailRenderer, require

if TYPE_CHECKING:
    from pgqueue.config import Settings

Security = Literal["starttls", "tls", "plain"]
PORTS: Final = {"starttls": 587, "tls": 465, "plain": 25}
DEFAULT_SMTP_TIMEOUT: Final = 10.0
_LOCAL_HOSTS = frozenset(["localhost", "127.0.0.1", "::1"])


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """How to reach the mail server, and whom mails are from.

    Attributes:
        host: its name or address.
        sender: whom mails are from: `Name <address>` or an address.
        port: None: 587 for starttls, 465 for tls, 25 for plain.
        security: `starttls`, which the server must offer; `tls` from the first byte; `plain`.
        username: for AUTH; None: none.
        password: for AUTH; appears in no text.
        timeout: seconds that connecting and each reply may take.
        ca_file: certificates (PEM) of authorities to trust; None: the system's.

    Raises:
        ConfigurationError: a value breaks its rule.
    """

    host: str
    sender: str
    port: int | None = None
    security: Security = "starttls"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout: float = DEFAULT_SMTP_TIMEOUT
    ca_file: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigurationError("smtp_host is empty: must name the mail server")
        if self.security not in get_args(Security):
            raise ConfigurationError(f"smtp_security is {self.security!r}: must be starttls, tls or plain")
        if self.port is not None and not 1 <= self.port <= 65_535:
            raise ConfigurationError(f"smtp_port is {self.port}: must be 1 to 65535")
        if not self.timeout > 0:
            raise ConfigurationError(f"smtp_timeout is {self.timeout}: must be more than 0 seconds")
        if (self.username is None) != (self.password is None):
            raise ConfigurationError("smtp_username and smtp_password go together: one of them is missing")
        if self.username is not None and self.security == "plain" and self.host not in _LOCAL_HOSTS:
            raise ConfigurationError(
                f"smtp_security is plain: the password for {self.host} would cross the network unencrypted; "
                "use starttls or tls"
            )
        _sender_of(self.sender)

    @classmethod
    def of(cls, settings: Settings) -> SmtpSettings:
        """What pgqueue's settings say.

        Raises:
            ConfigurationError: they name no mail server or no sender, or a value breaks its rule.
        """
        if settings.smtp_host is None or settings.smtp_sender is None:
            raise ConfigurationError("mail needs smtp_host and smtp_sender: one of them is not set")
        return cls(
            settings.smtp_host,
            settings.smtp_sender,
            settings.smtp_port,
            settings.smtp_security,
            settings.smtp_username,
            settings.smtp_password,
            settings.smtp_timeout,
            settings.smtp_ca_file,
        )


class SmtpSender:
    """Sends one message to one address, over a connection of its own.

    Raises:
        ConfigurationError: aiosmtplib is not installed, or `ca_file` is broken.
    """

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings
        self._smtp = require("aiosmtplib")
        self._sender = _sender_of(settings.sender)
        self._context = _tls_context(settings)

    def envelope(self, address: str, subject: str, key: str, date: datetime, name: str = "") -> EmailMessage:
        """A message with its headers and no content; its Message-ID is made of `key`."""
        message = EmailMessage(policy=SMTP)
        message["From"] = self._sender
        message["To"] = _address(name, address)
        message["Subject"] = subject
        message["Date"] = format_datetime(date)
        message["Message-ID"] = f"<{key}@{_ascii_domain(self._sender.domain)}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office reply to this
        return message

    async def send(self, message: EmailMessage, address: str) -> None:
        """Send it.

        Raises:
            MailRefusedError: the server refuses it for good (5xx).
            MailError: it may be taken another time.
        """
        settings, smtp = self._settings, self._smtp
        client = smtp.SMTP(
            hostname=settings.host,
            port=settings.port or PORTS[settings.security],
            username=settings.username,
            password=settings.password,
            timeout=settings.timeout,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            tls_context=self._context,
            local_hostname=_ascii_domain(self._sender.domain),  # asking the resolver for our own name may take long
        )
        transport: Any = None
        try:
            await client.connect()
            transport = client.transport
            await client.send_message(message, sender=self._sender.addr_spec, recipients=[address])
            with contextlib.suppress(smtp.SMTPException, OSError):
                await client.quit()  # the server has the mail: how it takes the farewell changes nothing
        except smtp.SMTPRecipientsRefused as error:
            refused = error.recipients[0]
            raise self._failure(refused.code, refused.message) from None
        except smtp.SMTPResponseException as error:
            raise self._failure(error.code, error.message) from None
        except (smtp.SMTPException, OSError) as error:
            raise MailError(
                f"{self._server()}: {getattr(error, 'message', '') or error or type(error).__name__}"
            ) from None
        finally:
            transport = transport or client.transport
            client.close()
            if transport is not None:
                transport.abort()  # what is left is TLS's farewell, and the server may keep us waiting for its own
                await asyncio.sleep(0)  # the socket is closed in the loop's next turn, which may be its last

    def _failure(self, code: int, reply: str) -> MailError:
        text = f"{self._server()} refused the mail: {code} {' '.join(str(reply).split())}"
        return MailRefusedError(text, code=code) if 500 <= code <= 599 else MailError(text)

    def _server(self) -> str:
        return f"mail server {self._settings.host}:{self._settings.port or PORTS[self._settings.security]}"


class SmtpMailerService:
    """Sends the nine mails by SMTP.

    Args:
        settings: how, and from whom.
        templates: a directory whose templates take the place of the package's, file by file.

    Raises:
        ConfigurationError: aiosmtplib or Jinja2 is not installed, a template or `ca_file` is broken.
    """

    def __init__(self, settings: SmtpSettings, *, templates: str | Path | None = None) -> None:
        self._sender = SmtpSender(settings)
        self._renderer = MailRenderer(templates)

    async def send_welcome_email(self, mail: models.WelcomeInput, *, idempotency_key: str) -> dict[str, str]:
        """Welcome a new account."""
        return await self._send("welcome_email", mail, mail.name, idempotency_key)

    async def send_user_verification(self, mail: models.VerificationInput, *, idempotency_key: str) -> dict[str, str]:
        """Ask an account to confirm its address."""
        return await self._send("user_verification", mail, mail.name, idempotency_key)

    async def send_invitation(self, mail: models.MemberInvitationInput, *, idempotency_key: str) -> dict[str, str]:
        """Invite somebody into a business."""
        return await self._send("invitation", mail, "", idempotency_key)

    async def send_announce_role(self, mail: models.MemberAnnounceRoleInput, *, idempotency_key: str) -> dict[str, str]:
        """Tell a member of their new role."""
        return await self._send("announce_role", mail, mail.name, idempotency_key)

    async def send_announce_kick(self, mail: models.MemberAnnounceKickInput, *, idempotency_key: str) -> dict[str, str]:
        """Tell somebody that they are no longer a member."""
        return await self._send("announce_kick", mail, mail.name, idempotency_key)

    async def send_welcome_business(
        self, mail: models.MemberWelcomeBusinessInput, *, idempotency_key: str
    ) -> dict[str, str]:
        """Welcome a member into a business."""
        return await self._send("welcome_business", mail, mail.name, idempotency_key)

    async def send_payment_checkout(self, mail: models.PaymentCheckoutInput, *, idempotency_key: str) -> dict[str, str]:
        """Ask for a payment."""
        return await self._send("payment_checkout", mail, mail.name, idempotency_key)

    async def send_payment_success(self, mail: models.PaymentSuccessInput, *, idempotency_key: str) -> dict[str, str]:
        """Confirm a payment."""
        return await self._send("payment_success", mail, mail.name, idempotency_key)

    async def send_payment_canceled(self, mail: models.PaymentCanceledInput, *, idempotency_key: str) -> dict[str, str]:
        """Say that a payment was cancelled."""
        return await self._send("payment_canceled", mail, mail.name, idempotency_key)

    def message(self, name: str, mail: models.MailInput, recipient: str, idempotency_key: str) -> EmailMessage:
        """The mail `name` as it is sent, text and HTML; `recipient` is a name for display, or empty."""
        rendered = self._renderer.render(name, mail)
        message = self._sender.envelope(mail.email, rendered.subject, idempotency_key, datetime.now(UTC), recipient)
        message.set_content(rendered.text)
        message.add_alternative(rendered.html, subtype="html")
        return message

    async def _send(self, name: str, mail: models.MailInput, recipient: str, idempotency_key: str) -> dict[str, str]:
        message = self.message(name, mail, recipient, idempotency_key)
        await self._sender.send(message, mail.email)
        return {"messageId": str(message["Message-ID"])}


def _sender_of(sender: str) -> Address:
    name, address = parseaddr(sender)
    try:
        if re.search(r"[\x00-\x1f\x7f]", sender):
            raise ValueError(sender)
        return _address(name, models.check_address(address))
    except ValueError:
        raise ConfigurationError(f"smtp_sender is {sender!r}: must be `Name <address>` or an address") from None


def _address(name: str, address: str) -> Address:
    user, _, domain = address.rpartition("@")
    return Address(display_name=name, username=user, domain=domain)


def _ascii_domain(domain: str) -> str:
    try:
        return domain.encode("idna").decode()
    except UnicodeError:
        return "localhost"


def _tls_context(settings: SmtpSettings) -> Any:
    if settings.security == "plain":
        return None
    try:
        return ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"smtp_ca_file {str(settings.ca_file)!r} cannot be read: {error}") from None
