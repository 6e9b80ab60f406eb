"""`MailerProducer`: enqueues the nine mails, from sync or async code.

Owns the defaults of a mail's job. Needs no mail server and none of the packages of the extra `[mail]`.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar, Unpack, cast, overload

from pgqueue.job import Job, JobOptions
from pgqueue.jobs.mail import models
from pgqueue.jobs.options import AwaitableJob, EnqueueOptions, enqueue_with
from pgqueue.payloads import parse_payload
from pgqueue.queue import Queue
from pgqueue.queue_async import AsyncQueue

DEFAULT_MAX_RETRY: Final = 3
DEFAULT_TIMEOUT_SECONDS: Final = 30.0
DEFAULT_OPTIONS: Final = JobOptions(
    queue="default", max_attempts=DEFAULT_MAX_RETRY + 1, timeout=DEFAULT_TIMEOUT_SECONDS
)

EnqueuedT = TypeVar("EnqueuedT", Job, AwaitableJob)


class MailerProducer(Generic[EnqueuedT]):
    """Enqueues mails; each method takes `enqueue`'s options too, `connection` among them.

    Args:
        queue: a `Queue`: the methods return the Job; an `AsyncQueue`: they are awaited.
        options: the defaults of every mail; what they leave open is queue `default`, 4 attempts (the first and 3
            retries), a timeout of 30 s.

    Raises (from every method):
        InvalidPayloadError: the payload is of another model; as `Queue.enqueue`.
    """

    @overload
    def __init__(self: MailerProducer[Job], queue: Queue, options: JobOptions | None = None) -> None: ...

    @overload
    def __init__(self: MailerProducer[AwaitableJob], queue: AsyncQueue, options: JobOptions | None = None) -> None: ...

    def __init__(self, queue: Queue | AsyncQueue, options: JobOptions | None = None) -> None:
        self._queue = queue
        self._options = options

    def enqueue_welcome_email(self, mail: models.WelcomeInput, **options: Unpack[EnqueueOptions]) -> EnqueuedT:
        """Enqueue the welcome of a new account."""
        return self._enqueue(models.JOB_TYPE_WELCOME, models.WelcomeInput, mail, options)

    def enqueue_user_verification(self, mail: models.VerificationInput, **options: Unpack[EnqueueOptions]) -> EnqueuedT:
        """Enqueue the request to confirm an address."""
        return self._enqueue(models.JOB_TYPE_VERIFICATION, models.VerificationInput, mail, options)

    def enqueue_invitation(self, mail: models.MemberInvitationInput, **options: Unpack[EnqueueOptions]) -> EnqueuedT:
        """Enqueue an invitation into a business."""
        return self._enqueue(models.JOB_TYPE_MEMBER_INVITATION, models.MemberInvitationInput, mail, options)

    def enqueue_announce_role(
        self, mail: models.MemberAnnounceRoleInput, **options: Unpack[EnqueueOptions]
    ) -> EnqueuedT:
        """Enqueue the news of a member's new role."""
        return self._enqueue(models.JOB_TYPE_MEMBER_ROLE, models.MemberAnnounceRoleInput, mail, options)

    def enqueue_announce_kick(
        self, mail: models.MemberAnnounceKickInput, **options: Unpack[EnqueueOptions]
    ) -> EnqueuedT:
        """Enqueue the news that a membership ended."""
        return self._enqueue(models.JOB_TYPE_MEMBER_KICK, models.MemberAnnounceKickInput, mail, options)

    def enqueue_welcome_business(
        self, mail: models.MemberWelcomeBusinessInput, **options: Unpack[EnqueueOptions]
    ) -> EnqueuedT:
        """Enqueue the welcome of a new member."""
        return self._enqueue(models.JOB_TYPE_MEMBER_WELCOME, models.MemberWelcomeBusinessInput, mail, options)

    def enqueue_payment_checkout(
        self, mail: models.PaymentCheckoutInput, **options: Unpack[EnqueueOptions]
    ) -> EnqueuedT:
        """Enqueue the request for a payment."""
        return self._enqueue(models.JOB_TYPE_PAYMENT_CHECKOUT, models.PaymentCheckoutInput, mail, options)

    def enqueue_payment_success(self, mail: models.PaymentSuccessInput, **options: Unpack[EnqueueOptions]) -> EnqueuedT:
        """Enqueue the confirmation of a payment."""
        return self._enqueue(models.JOB_TYPE_PAYMENT_SUCCESS, models.PaymentSuccessInput, mail, options)

    def enqueue_payment_canceled(
        self, mail: models.PaymentCanceledInput, **options: Unpack[EnqueueOptions]
    ) -> EnqueuedT:
        """Enqueue the news that a payment was cancelled."""
        return self._enqueue(models.JOB_TYPE_PAYMENT_CANCELED, models.PaymentCanceledInput, mail, options)

    def _enqueue(
        self, job_type: str, model: type[models.MailInput], mail: models.MailInput, given: EnqueueOptions
    ) -> EnqueuedT:
        checked = parse_payload(model, mail)  # a mail of another model is refused, whatever the caller's types say
        return cast(
            "EnqueuedT",
            enqueue_with(self._queue.enqueue, job_type, checked, [DEFAULT_OPTIONS, self._options], given),
        )
