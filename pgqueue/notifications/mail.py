"""Notifications by mail: to the recipients of the type's config that are addresses, by SMTP. Extra `[mail]`.

Promises one mail per recipient, with a Message-ID that is the same over the retries of a delivery, and that nobody
who has it is sent it again because another's was refused for now, as long as the process lives.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from email.message import EmailMessage

from pgqueue.errors import MailError, MailRefusedError
from pgqueue.jobs.mail import SmtpSettings
from pgqueue.jobs.mail.models import check_address
from pgqueue.jobs.mail.smtp import SmtpSender
from pgqueue.notifications.message import Message
from pgqueue.outcome import Discard

REMEMBERED = 1_000
"""Deliveries whose part that is done is kept in memory."""


class MailChannel:
    """A mail of text to each recipient that is an address, one by one: nobody sees the others.

    A refusal for now (4xx, no connection) has the delivery tried again; one for good (5xx) is final for its recipient,
    and fails the delivery once the others have theirs.

    Args:
        settings: how to reach the server, and whom mails are from (`SmtpSettings.of(Settings())`: pgqueue's own).

    Raises:
        ConfigurationError: aiosmtplib is not installed, or `ca_file` is broken.
    """

    def __init__(self, settings: SmtpSettings) -> None:
        self._sender = SmtpSender(settings)
        self._done: OrderedDict[int, dict[str, str | None]] = OrderedDict()

    async def send(self, message: Message) -> None:
        """Send to whom it was not sent yet."""
        if not message.recipients:
            raise Discard("mail has no recipients: name addresses in the type's JobNotificationConfig")
        done = self._done.setdefault(message.delivery_id, {})  # of each recipient: None, or why it was refused for good
        while len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
        waiting: MailError | None = None
        for recipient in message.recipients:
            if recipient in done:
                continue
            try:
                check_address(recipient)
                await self._sender.send(self._mail(message, recipient), recipient)
                done[recipient] = None
            except ValueError:
                done[recipient] = f"{recipient!r} is no mail address"
            except MailRefusedError as error:
                done[recipient] = str(error)
            except MailError as error:
                waiting = error
        if waiting is not None:
            raise waiting
        self._done.pop(message.delivery_id, None)
        if refused := [reason for reason in done.values() if reason is not None]:
            raise Discard("; ".join(refused))

    def _mail(self, message: Message, recipient: str) -> EmailMessage:
        made = message.at.astimezone(UTC).strftime("%Y%m%d%H%M%S")
        key = f"pgqueue-notice-{message.delivery_id}-{made}-{message.recipients.index(recipient)}"
        mail = self._sender.envelope(recipient, " ".join(message.title.split()), key, datetime.now(UTC))
        mail["X-Priority"] = {"critical": "1", "high": "2"}.get(message.priority.value, "3")
        mail.set_content(message.message + "\n")
        return mail
