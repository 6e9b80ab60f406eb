"""Executing the nine mails: the protocol of who sends them, the executors, their registration.

Owns what is tried again. Promises that all runs of one job carry one idempotency key, so that a receiver can tell
a mail that came twice: sending is at least once. Renders and sends nothing itself.
"""

from __future__ import annotations

import hashlib
from datetime import UTC
from typing import Any, Protocol

from pgqueue.errors import MailRefusedError
from pgqueue.job import Job
from pgqueue.jobs.mail import models
from pgqueue.jobs.mail.models import MAILS, Mail
from pgqueue.jobs.mail.producer import DEFAULT_MAX_RETRY, DEFAULT_TIMEOUT_SECONDS
from pgqueue.payloads import parse_payload


class MailerService(Protocol):
    """Sends the nine mails; each method may be `def` or `async def`.

    `idempotency_key` is the same in every run of one job and in no other job: make the Message-ID of it, or hand it
    to a provider that drops what it had before. What is returned becomes the job's result. MailRefusedError fails
    the job at once, any other error lets it be tried again.
    """

    def send_welcome_email(self, mail: models.WelcomeInput, *, idempotency_key: str) -> Any:
        """Welcome a new account."""

    def send_user_verification(self, mail: models.VerificationInput, *, idempotency_key: str) -> Any:
        """Ask an account to confirm its address."""

    def send_invitation(self, mail: models.MemberInvitationInput, *, idempotency_key: str) -> Any:
        """Invite somebody into a business."""

    def send_announce_role(self, mail: models.MemberAnnounceRoleInput, *, idempotency_key: str) -> Any:
        """Tell a member of their new role."""

    def send_announce_kick(self, mail: models.MemberAnnounceKickInput, *, idempotency_key: str) -> Any:
        """Tell somebody that they are no longer a member."""

    def send_welcome_business(self, mail: models.MemberWelcomeBusinessInput, *, idempotency_key: str) -> Any:
        """Welcome a member into a business."""

    def send_payment_checkout(self, mail: models.PaymentCheckoutInput, *, idempotency_key: str) -> Any:
        """Ask for a payment."""

    def send_payment_success(self, mail: models.PaymentSuccessInput, *, idempotency_key: str) -> Any:
        """Confirm a payment."""

    def send_payment_canceled(self, mail: models.PaymentCanceledInput, *, idempotency_key: str) -> Any:
        """Say that a payment was cancelled."""


class MailExecutor:
    """Executes one of the nine by calling the service's `send_<name>`."""

    def __init__(self, mail: Mail, mailer_service: MailerService) -> None:
        self.job_type = mail.job_type
        self._model = mail.model
        self._send = getattr(mailer_service, f"send_{mail.name}")

    def execute(self, job: Job, context: Any) -> Any:
        """Return the job's result, or an awaitable of it when the service is async.

        Raises:
            InvalidPayloadError: the payload is not the model's.
        """
        return self._send(parse_payload(self._model, context.payload), idempotency_key=idempotency_key(job))


def idempotency_key(job: Job) -> str:
    """The same for each run of `job`, and another for each job of any database: `pgqueue-<id>-<16 hex digits>`."""
    made = "" if job.created_at is None else job.created_at.astimezone(UTC).isoformat()
    digest = hashlib.sha256(f"{job.type} {made}".encode()).hexdigest()
    return f"pgqueue-{job.id}-{digest[:16]}"


class _Registry(Protocol):
    def add(self, executor: Any, **options: Any) -> None: ...


def register_mailer(
    registry: _Registry,
    mailer_service: MailerService,
    *,
    max_attempts: int = DEFAULT_MAX_RETRY + 1,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    **options: Any,
) -> None:
    """Register the nine mails, sent by `mailer_service`.

    Args:
        registry: a `pgqueue.Registry`.
        mailer_service: who sends them, such as a `SmtpMailerService`.
        max_attempts: how often a mail is tried where its job does not say; 4: the first and 3 retries.
        timeout: seconds a run may take where its job does not say.
        **options: the rest of `Registry.register`'s, such as `max_concurrency` or `rate_limit`; each mail is a type of
            its own, so they hold for each by itself.
    """
    retry = {**(options.pop("retry", None) or {}), MailRefusedError: False}
    for mail in MAILS:
        registry.add(
            MailExecutor(mail, mailer_service),
            payload=mail.model,
            retry=retry,
            max_attempts=max_attempts,
            timeout=timeout,
            **{"backend": "inline", **options},
        )
