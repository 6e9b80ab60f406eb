"""Mail: nine job types, their payloads, `MailerProducer` to enqueue them, and `SmtpMailerService` to send them.

Owns the names a program imports. Importing it needs none of the packages of the extra `[mail]`; those are loaded
when a `SmtpMailerService` is made.
"""

from pgqueue.jobs.mail.models import (
    JOB_TYPE_MEMBER_INVITATION,
    JOB_TYPE_MEMBER_KICK,
    JOB_TYPE_MEMBER_ROLE,
    JOB_TYPE_MEMBER_WELCOME,
    JOB_TYPE_PAYMENT_CANCELED,
    JOB_TYPE_PAYMENT_CHECKOUT,
    JOB_TYPE_PAYMENT_SUCCESS,
    JOB_TYPE_VERIFICATION,
    JOB_TYPE_WELCOME,
    MemberAnnounceKickInput,
    MemberAnnounceRoleInput,
    MemberInvitationInput,
    MemberWelcomeBusinessInput,
    PaymentCanceledInput,
    PaymentCheckoutInput,
    PaymentSuccessInput,
    VerificationInput,
    WelcomeInput,
)
from pgqueue.jobs.mail.producer import DEFAULT_MAX_RETRY, DEFAULT_TIMEOUT_SECONDS, MailerProducer
from pgqueue.jobs.mail.service import MailerService, register_mailer
from pgqueue.jobs.mail.smtp import SmtpMailerService, SmtpSettings

__all__ = [
    "DEFAULT_MAX_RETRY",
    "DEFAULT_TIMEOUT_SECONDS",
    "JOB_TYPE_MEMBER_INVITATION",
    "JOB_TYPE_MEMBER_KICK",
    "JOB_TYPE_MEMBER_ROLE",
    "JOB_TYPE_MEMBER_WELCOME",
    "JOB_TYPE_PAYMENT_CANCELED",
    "JOB_TYPE_PAYMENT_CHECKOUT",
    "JOB_TYPE_PAYMENT_SUCCESS",
    "JOB_TYPE_VERIFICATION",
    "JOB_TYPE_WELCOME",
    "MailerProducer",
    "MailerService",
    "MemberAnnounceKickInput",
    "MemberAnnounceRoleInput",
    "MemberInvitationInput",
    "MemberWelcomeBusinessInput",
    "PaymentCanceledInput",
    "PaymentCheckoutInput",
    "PaymentSuccessInput",
    "SmtpMailerService",
    "SmtpSettings",
    "VerificationInput",
    "WelcomeInput",
    "register_mailer",
]
