"""The nine mails: their job types and payloads.

Owns names and JSON shapes (camelCase keys), and what may stand in them. Promises that a payload which fits cannot
break out of a header or a link: addresses are bare ones, names are one line, links are http or https. Knows no
template and no server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints
from pydantic_core import PydanticCustomError

from pgqueue.payloads import PayloadModel

JOB_TYPE_WELCOME: Final = "queue:mailer:auth:welcome"
JOB_TYPE_VERIFICATION: Final = "queue:mailer:auth:verification"
JOB_TYPE_MEMBER_INVITATION: Final = "queue:mailer:member:invitation"
JOB_TYPE_MEMBER_ROLE: Final = "queue:mailer:member:role"
JOB_TYPE_MEMBER_KICK: Final = "queue:mailer:member:kick"
JOB_TYPE_MEMBER_WELCOME: Final = "queue:mailer:member:welcome"
JOB_TYPE_PAYMENT_CHECKOUT: Final = "queue:mailer:payment:checkout"
JOB_TYPE_PAYMENT_SUCCESS: Final = "queue:mailer:payment:success"
JOB_TYPE_PAYMENT_CANCELED: Final = "queue:mailer:payment:canceled"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LABEL = r"[^\W_](?:(?:[^\W_]|-){0,61}[^\W_])?"
_ADDRESS = re.compile(rf"(?![^@]*\.\.)[^\s.@()<>\[\]:;,\\\"](?:[^\s@()<>\[\]:;,\\\"]{{0,62}}[^\s.@()<>\[\]:;,\\\"])?"
                      rf"@{_LABEL}(?:\.{_LABEL})*")  # fmt: skip


def check_address(value: str) -> str:
    """Return `value` if it is one bare mail address, such as `ada@example.com`.

    Raises:
        PydanticCustomError (ValueError): it is not.
    """
    if len(value) > 254 or not value.isprintable() or not _ADDRESS.fullmatch(value):
        raise PydanticCustomError("mail_address", "must be one bare mail address, such as ada@example.com")
    return value


def _check_line(value: str) -> str:
    if _CONTROL.search(value) or not value.strip():
        raise PydanticCustomError("mail_line", "must be one line of text without control characters")
    return value


def _check_text(value: str) -> str:
    if _CONTROL.search(value.replace("\r\n", "").replace("\n", "").replace("\t", "")):
        raise PydanticCustomError("mail_text", "must be text without control characters")
    return value


def _check_link(value: str) -> str:
    try:
        parts = urlsplit(value)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        sound = False
    if not sound or not value.isprintable() or " " in value:
        raise PydanticCustomError("mail_link", "must be a link that starts with https:// or http://")
    return value


def _is_none(value: object) -> bool:
    return value is None


Email = Annotated[str, AfterValidator(check_address)]
Line = Annotated[str, StringConstraints(max_length=200), AfterValidator(_check_line)]
Text = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_check_text)]
Link = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_check_link)]
Amount = Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=4)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]


class MailInput(PayloadModel):
    """What every mail has: whom it goes to, a bare address."""

    email: Email


class WelcomeInput(MailInput):
    """Welcomes a new account."""

    name: Line


class VerificationInput(MailInput):
    """Asks an account to confirm its address by a link, which may run out."""

    name: Line
    verification_url: Link
    expires_at: Annotated[AwareDatetime | None, Field(exclude_if=_is_none)] = None


class MemberInvitationInput(MailInput):
    """Invites somebody into a business."""

    inviter_name: Line
    business_name: Line
    invitation_url: Link
    role: Annotated[Line | None, Field(exclude_if=_is_none)] = None


class MemberAnnounceRoleInput(MailInput):
    """Tells a member of their new role."""

    name: Line
    business_name: Line
    old_role: Annotated[Line | None, Field(exclude_if=_is_none)] = None
    new_role: Line


class MemberAnnounceKickInput(MailInput):
    """Tells somebody that they are no longer a member."""

    name: Line
    business_name: Line
    reason: Annotated[Text | None, Field(exclude_if=_is_none)] = None


class MemberWelcomeBusinessInput(MailInput):
    """Welcomes a member into a business."""

    name: Line
    business_name: Line


class PaymentInput(MailInput):
    """What the mails about a payment have: an amount in units of its currency (19.90, not cents), ISO 4217."""

    name: Line
    order_id: Line
    amount: Amount
    currency: Currency


class PaymentCheckoutInput(PaymentInput):
    """Asks for a payment by a link."""

    checkout_url: Link


class PaymentSuccessInput(PaymentInput):
    """Confirms a payment."""

    paid_at: AwareDatetime


class PaymentCanceledInput(PaymentInput):
    """Says that a payment was cancelled."""

    reason: Annotated[Text | None, Field(exclude_if=_is_none)] = None


@dataclass(frozen=True, slots=True)
class Mail:
    """One of the nine: `MailerProducer.enqueue_<name>`, `MailerService.send_<name>`, templates `<name>.txt|html`."""

    name: str
    job_type: str
    model: type[MailInput]


MAILS: Final = (
    Mail("welcome_email", JOB_TYPE_WELCOME, WelcomeInput),
    Mail("user_verification", JOB_TYPE_VERIFICATION, VerificationInput),
    Mail("invitation", JOB_TYPE_MEMBER_INVITATION, MemberInvitationInput),
    Mail("announce_role", JOB_TYPE_MEMBER_ROLE, MemberAnnounceRoleInput),
    Mail("announce_kick", JOB_TYPE_MEMBER_KICK, MemberAnnounceKickInput),
    Mail("welcome_business", JOB_TYPE_MEMBER_WELCOME, MemberWelcomeBusinessInput),
    Mail("payment_checkout", JOB_TYPE_PAYMENT_CHECKOUT, PaymentCheckoutInput),
    Mail("payment_success", JOB_TYPE_PAYMENT_SUCCESS, PaymentSuccessInput),
    Mail("payment_canceled", JOB_TYPE_PAYMENT_CANCELED, PaymentCanceledInput),
)
