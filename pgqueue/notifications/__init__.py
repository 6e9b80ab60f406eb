"""What people are told when a job ends: per type a config, per channel a job that delivers, and an inbox.

The notification is written in the transaction that ends the job, as one job of type `notify:<channel>` for each of the
config's channels. So it is never lost and never invented, a channel that is down delays only itself, and retries, rates
and dead letters are those of any job. Delivery is at least once; `Message.delivery_id` is the same over retries.
"""

from __future__ import annotations

from pgqueue.notifications.channels import AppriseChannel, Channel, LogChannel, WebhookChannel
from pgqueue.notifications.config import JobNotificationConfig, NotificationPriority
from pgqueue.notifications.delivery import register_builtin_channels, register_channel
from pgqueue.notifications.inbox import Inbox, InboxChannel, InboxItem
from pgqueue.notifications.mail import MailChannel
from pgqueue.notifications.message import Message

__all__ = [
    "AppriseChannel",
    "Channel",
    "Inbox",
    "InboxChannel",
    "InboxItem",
    "JobNotificationConfig",
    "LogChannel",
    "MailChannel",
    "Message",
    "NotificationPriority",
    "WebhookChannel",
    "register_builtin_channels",
    "register_channel",
]
