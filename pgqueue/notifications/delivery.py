"""The job that delivers one notification to one channel: type `notify:<channel>`, with retries of its own."""

from __future__ import annotations

from typing import Any

from pgqueue import validation
from pgqueue.config import Settings
from pgqueue.errors import ConfigurationError
from pgqueue.job import Job
from pgqueue.jobs.mail import SmtpSettings
from pgqueue.notifications.channels import Channel, LogChannel
from pgqueue.notifications.inbox import Inbox, InboxChannel
from pgqueue.notifications.mail import MailChannel
from pgqueue.notifications.message import message_of
from pgqueue.registry import Registry

TYPE_PREFIX = "notify:"
DEFAULTS: dict[str, Any] = {"max_attempts": 10, "timeout": 60.0, "backoff": "exponential:5:3600", "backend": "inline"}


class Delivery:
    """The executor of one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def execute(self, job: Job, _context: object) -> None:
        """Make the message and send it."""
        await self._channel.send(message_of(job.payload, job.id))


def register_channel(registry: Registry, name: str, channel: Channel, **options: Any) -> None:
    """Deliver notifications of the channel `name` in this process, through `channel`.

    Args:
        registry: where the job type `notify:<name>` is registered.
        name: what a `JobNotificationConfig` calls it.
        channel: an object with `async send(message)`.
        **options: as in `Registry.register`; by default 10 attempts within about 43 minutes, 60 s each.

    Raises:
        ConfigurationError: the channel is registered already, or cannot send.
        InvalidNameError: the name breaks the naming rule.
    """
    if not isinstance(channel, Channel):
        raise ConfigurationError(f"channel {name!r} is {validation.shorten(channel)}: must have async send(message)")
    registry.register(
        f"{TYPE_PREFIX}{validation.check_name(name, 'channel')}", Delivery(channel), **{**DEFAULTS, **options}
    )


def register_builtin_channels(registry: Registry, settings: Settings | None = None) -> None:
    """Deliver to the channels `log` and `inbox` in this process, where the registry has none of these names itself.

    And to `mail`, where the settings name a mail server (`smtp_host`).

    `pgqueue dispatcher` and `pgqueue worker` do so by themselves; a program with a Dispatcher of its own calls it.
    """
    channels: dict[str, Channel] = {"log": LogChannel(), "inbox": InboxChannel(Inbox(settings=settings))}
    if settings is not None and settings.smtp_host is not None:
        channels["mail"] = MailChannel(SmtpSettings.of(settings))
    for name, channel in channels.items():
        if f"{TYPE_PREFIX}{name}" not in registry:
            register_channel(registry, name, channel)
