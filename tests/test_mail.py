"""Mail: what is rendered, what is sent to a real SMTP server, what its answers make of the job."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aiosmtplib
import pytest
from mail_tools import PASSWORD, USER, Certificates, SmtpServer, closed, parts, with_auth

from pgqueue import Job, Registry
from pgqueue.errors import ConfigurationError, InvalidPayloadError, MailError, MailRefusedError
from pgqueue.jobs.mail import MailerService, SmtpMailerService, SmtpSettings, WelcomeInput, models, register_mailer
from pgqueue.jobs.mail.rendering import MailRenderer, money
from pgqueue.jobs.mail.service import idempotency_key
from pgqueue.payloads import parse_payload

ADA = {"email": "ada@example.com", "name": "Ada <b>Lovelace</b>"}
WHEN = datetime(2031, 2, 3, 4, 5, tzinfo=UTC)
ORDER = {**ADA, "orderId": "A-17", "amount": "1249.5", "currency": "EUR"}
BUSINESS = {**ADA, "businessName": "Smith & Sons"}
SAMPLES = {
    "welcome_email": (ADA, "Welcome, Ada <b>Lovelace</b>"),
    "user_verification": (
        {**ADA, "verificationUrl": "https://example.com/verify?a=1&b=2", "expiresAt": WHEN.isoformat()},
        "3 February 2031, 04:05 UTC",
    ),
    "invitation": (
        {
            "email": "ada@example.com",
            "inviterName": "Grace",
            "businessName": "Smith & Sons",
            "invitationUrl": "https://example.com/join?a=1&b=2",
            "role": "editor",
        },
        "Grace invites you to join Smith & Sons as editor",
    ),
    "announce_role": ({**BUSINESS, "oldRole": "editor", "newRole": "owner"}, "from editor to owner"),
    "announce_kick": ({**BUSINESS, "reason": "Line one\nline two"}, "Line one\nline two"),
    "welcome_business": (BUSINESS, "Welcome to Smith & Sons"),
    "payment_checkout": ({**ORDER, "checkoutUrl": "https://example.com/pay?a=1&b=2"}, "1,249.50 EUR"),
    "payment_success": ({**ORDER, "paidAt": WHEN.isoformat()}, "3 February 2031, 04:05 UTC"),
    "payment_canceled": ({**ORDER, "reason": "the card was refused"}, "the card was refused"),
}
NAMES = [mail.name for mail in models.MAILS]


def sample(name: str) -> models.MailInput:
    model = next(mail.model for mail in models.MAILS if mail.name == name)
    return parse_payload(model, SAMPLES[name][0])


@pytest.fixture
def server():
    with SmtpServer() as running:
        yield running


def send(service: SmtpMailerService, name: str = "welcome_email", mail: Any = None) -> dict[str, str]:
    async def run() -> dict[str, str]:
        try:
            return await getattr(service, f"send_{name}")(mail or sample(name), idempotency_key="pgqueue-1-0")
        finally:
            await closed()

    return asyncio.run(run())


# What is rendered


@pytest.mark.parametrize("name", NAMES)
def test_each_mail_arrives_with_subject_text_and_escaped_html(server, name):
    result = send(SmtpMailerService(server.settings()), name)
    ((envelope, message),) = server.received
    text, html = parts(message)
    assert envelope.mail_from == "shop@example.com"
    assert envelope.rcpt_tos == ["ada@example.com"]
    assert message["From"] == "The Shop <shop@example.com>"
    assert message["To"].addresses[0].addr_spec == "ada@example.com"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"] == "<pgqueue-1-0@example.com>" == result["messageId"]
    assert abs((message["Date"].datetime - datetime.now(UTC)).total_seconds()) < 60
    assert SAMPLES[name][1] in f"{message['Subject']}\n{text}"
    assert "<b>" not in html
    assert "{{" not in text + html
    assert "{%" not in text + html
    if "?a=1&b=2" in str(SAMPLES[name][0]):
        assert "?a=1&b=2\n" in text
        assert 'href="https://example.com/' in html
        assert "?a=1&amp;b=2" in html
    if "Smith & Sons" in str(SAMPLES[name][0]):
        assert "Smith &amp; Sons" in html


@pytest.mark.parametrize("name", NAMES)
def test_a_mail_without_what_is_optional_says_nothing_of_it(name):
    model = next(mail.model for mail in models.MAILS if mail.name == name)
    given, _ = SAMPLES[name]
    optional = {field.alias for field in model.model_fields.values() if not field.is_required()}
    lean = parse_payload(model, {key: value for key, value in given.items() if key not in optional})
    rendered = MailRenderer().render(name, lean)
    assert "None" not in rendered.subject + rendered.text + rendered.html
    assert "\n\n\n" not in rendered.text
    assert not optional & lean.model_dump(mode="json", by_alias=True).keys()


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        ("0", "EUR", "0.00 EUR"),
        ("1e3", "USD", "1,000.00 USD"),
        ("1200", "JPY", "1,200 JPY"),
        ("1.2345", "EUR", "1.2345 EUR"),
    ],
)
def test_money_is_written_with_its_currency_s_digits(amount, currency, shown):
    assert money(Decimal(amount), currency) == shown


def test_templates_of_a_directory_take_the_place_of_the_package_s(server, tmp_path):
    (tmp_path / "welcome_email.txt").write_text("Subject: Hi {{ name }}\n\nOurs.\n")
    (tmp_path / "layout.html").write_text("<i>{{ email }}</i>{% block content %}{% endblock %}")
    service = SmtpMailerService(server.settings(), templates=tmp_path)
    send(service)
    send(service, "welcome_business")
    (_, first), (_, second) = server.received
    assert first["Subject"] == "Hi Ada <b>Lovelace</b>"
    assert parts(first)[0] == "Ours.\n"
    assert all(parts(message)[1].startswith("<i>ada@example.com</i>") for message in (first, second))
    assert "you are now a member" in parts(second)[1]
    assert second["Subject"] == "Welcome to Smith & Sons"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Subject: {{ name", "line 1"),
        ("no subject\n", "first line must be `Subject: ...`"),
        ("Subject: {{ nickname }}\n", "'nickname' is undefined"),
    ],
)
def test_a_broken_template_is_named(server, tmp_path, text, said):
    (tmp_path / "welcome_email.txt").write_text(text)
    with pytest.raises(ConfigurationError, match=r"welcome_email\.txt") as caught:
        send(SmtpMailerService(server.settings(), templates=tmp_path))
    assert said in str(caught.value)
    assert not server.received


def test_templates_in_a_directory_that_is_not_there_are_refused_at_the_start(server, tmp_path):
    with pytest.raises(ConfigurationError, match="there is no directory"):
        SmtpMailerService(server.settings(), templates=tmp_path / "missing")


# What may stand in a payload


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"email": "ada"}, "$.email"),
        ({"email": "Ada <ada@example.com>"}, "$.email"),
        ({"email": "ada@example.com, eve@example.com"}, "$.email"),
        ({"email": "ada@example.com\r\nBcc: eve@example.com"}, "$.email"),
        ({"email": "ada@exa mple.com"}, "$.email"),
        ({"email": "ada..l@example.com"}, "$.email"),
        ({"email": "ada@-example.com"}, "$.email"),
        ({"email": "ada\u202e@example.com"}, "$.email"),
        ({"name": "Ada\r\nBcc: eve@example.com"}, "$.name"),
        ({"name": " "}, "$.name"),
        ({"name": "Ada\u2028Eve"}, "$.name"),
        ({"name": "A" * 201}, "$.name"),
        ({"verificationUrl": "javascript:alert(1)"}, "$.verificationUrl"),
        ({"verificationUrl": "https://"}, "$.verificationUrl"),
        ({"verificationUrl": "https://example.com/\nx"}, "$.verificationUrl"),
        ({"expiresAt": "2031-02-03T04:05:06"}, "$.expiresAt"),
    ],
)
def test_what_could_break_out_of_a_header_or_a_link_is_no_payload(change, place):
    with pytest.raises(InvalidPayloadError) as caught:
        parse_payload(models.VerificationInput, {**SAMPLES["user_verification"][0], **change})
    assert caught.value.path == place


@pytest.mark.parametrize("address", ["a@b", "ada+tag@example.com", "o'neil@mail.example.uk", "jürgen@bücher.example"])
def test_an_ordinary_address_is_one(address):
    assert WelcomeInput(email=address, name="Ada").email == address


@pytest.mark.parametrize(("amount", "currency"), [("-1", "EUR"), ("NaN", "EUR"), ("1.23456", "EUR"), ("1", "euro")])
def test_amounts_are_not_negative_and_currencies_are_codes(amount, currency):
    with pytest.raises(InvalidPayloadError):
        parse_payload(models.PaymentInput, {**ORDER, "amount": amount, "currency": currency})


def test_a_template_of_one_s_own_cannot_make_a_second_header_of_a_long_reason(server, tmp_path):
    (tmp_path / "announce_kick.txt").write_text("Subject: {{ reason }}\n\nBye.\n")
    send(SmtpMailerService(server.settings(), templates=tmp_path), "announce_kick")
    ((_, message),) = server.received
    assert message["Subject"] == "Line one"
    assert "Bcc" not in message


# What the server answers


def test_the_message_id_is_one_job_s_over_its_runs_and_no_other_s():
    made = datetime(2031, 1, 1, tzinfo=UTC)
    job = Job(7, models.JOB_TYPE_WELCOME, {}, created_at=made)
    again = Job(7, models.JOB_TYPE_WELCOME, {}, created_at=made, attempt=3)
    elsewhere = Job(7, models.JOB_TYPE_WELCOME, {}, created_at=made.replace(second=1))
    assert idempotency_key(job) == idempotency_key(again) != idempotency_key(elsewhere)


@pytest.mark.parametrize("where", ["rcpt", "data"])
def test_a_5xx_is_final_and_a_4xx_is_not(server, where):
    service = SmtpMailerService(server.settings())
    server.replies[where] = ["550 5.1.1 no such user", "451 4.3.0 try again later"]
    with pytest.raises(MailRefusedError, match=r"refused the mail: 550 5\.1\.1 no such user") as caught:
        send(service)
    assert caught.value.code == 550
    with pytest.raises(MailError, match="451") as later:
        send(service)
    assert not isinstance(later.value, MailRefusedError)
    send(service)
    assert len(server.received) == 1


def test_no_server_no_answer_and_a_server_that_comes_back(server):
    service = SmtpMailerService(server.settings(timeout=0.2))
    server.stop()
    with pytest.raises(MailError, match=f"mail server localhost:{server.port}: ") as caught:
        send(service)
    assert not isinstance(caught.value, MailRefusedError)
    server.start()
    server.silent.set()
    with pytest.raises(MailError, match="imed out"):
        send(service)
    server.silent.clear()
    send(SmtpMailerService(server.settings()))
    assert len(server.received) == 1


def test_an_address_beyond_ascii_needs_a_server_that_takes_it(server):
    mail = WelcomeInput(email="jürgen@bücher.example", name="Jürgen Groß")
    send(SmtpMailerService(server.settings()), mail=mail)
    ((envelope, message),) = server.received
    with SmtpServer(enable_SMTPUTF8=False) as other, pytest.raises(MailError, match="SMTPUTF8"):
        send(SmtpMailerService(other.settings()), mail=mail)
    assert envelope.rcpt_tos == ["jürgen@bücher.example"]
    assert "Jürgen Groß" in parts(message)[0]


# TLS and AUTH


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_starttls_and_auth(certificates):
    with with_auth(certificates) as server:
        options = {"security": "starttls", "ca_file": certificates.file, "username": USER}
        send(SmtpMailerService(server.settings(**options, password=PASSWORD)))
        assert len(server.received) == 1
        with pytest.raises(MailRefusedError, match="535") as caught:
            send(SmtpMailerService(server.settings(**options, password="not this one")))
        assert "not this one" not in str(caught.value)
        assert len(server.received) == 1


def test_tls_from_the_first_byte(certificates):
    with SmtpServer(ssl_context=certificates.context) as server:
        send(SmtpMailerService(server.settings(security="tls", ca_file=certificates.file)))
        assert len(server.received) == 1


def test_a_certificate_nobody_trusts_is_refused_and_so_is_a_server_without_starttls(certificates, server):
    with with_auth(certificates) as untrusted, pytest.raises(MailError, match="certificate"):
        send(SmtpMailerService(untrusted.settings(security="starttls")))
    with pytest.raises(MailError, match="STARTTLS"):
        send(SmtpMailerService(server.settings(security="starttls")))
    assert not server.received


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": ""}, "smtp_host is empty"),
        ({"sender": "nobody"}, "smtp_sender is 'nobody'"),
        ({"sender": "The Shop\r\nBcc: eve@example.com <shop@example.com>"}, "smtp_sender is"),
        ({"security": "ssl"}, "must be starttls, tls or plain"),
        ({"port": 0}, "smtp_port is 0"),
        ({"timeout": 0}, "smtp_timeout is 0"),
        ({"username": "a"}, "go together"),
        ({"security": "plain", "username": "a", "password": "secret-word"}, "unencrypted"),
    ],
)
def test_settings_that_cannot_work_are_refused_without_the_password(options, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        SmtpSettings(**{"host": "mail.example.com", "sender": "shop@example.com", **options})
    assert "secret-word" not in str(caught.value)


def test_the_password_is_in_no_text_and_a_missing_authority_is_named(tmp_path):
    settings = SmtpSettings("mail.example.com", "shop@example.com", username="a", password=PASSWORD)
    assert PASSWORD not in repr(settings)
    with pytest.raises(ConfigurationError, match="smtp_ca_file"):
        SmtpMailerService(SmtpSettings("localhost", "shop@example.com", ca_file=tmp_path / "missing.pem"))


# The protocol and the extra


def test_the_service_has_a_method_for_each_mail_and_each_type_is_registered_once():
    names = {f"send_{mail.name}" for mail in models.MAILS}
    assert names == {name for name in vars(MailerService) if name.startswith("send_")}
    for name in names:
        ours, theirs = getattr(MailerService, name), getattr(SmtpMailerService, name)
        assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters
    registry = Registry()
    register_mailer(registry, SmtpMailerService(SmtpSettings("localhost", "shop@example.com")), timeout=5)
    assert {one.type for one in registry} == {mail.job_type for mail in models.MAILS}
    assert {(one.max_attempts, one.timeout) for one in registry} == {(4, 5.0)}


def test_without_the_extra_mails_are_enqueued_and_sending_names_it():
    program = (
        "import sys; sys.modules['aiosmtplib'] = sys.modules['jinja2'] = None\n"
        "from pgqueue.jobs.mail import MailerProducer, SmtpMailerService, SmtpSettings, WelcomeInput\n"
        "WelcomeInput(email='ada@example.com', name='Ada')\n"
        "SmtpMailerService(SmtpSettings('localhost', 'shop@example.com'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "pgqueue.errors.ConfigurationError: "
        "mail needs the package aiosmtplib, which is not installed: pip install 'pgqueue[mail]'"
    )
    assert aiosmtplib.__name__ == "aiosmtplib"
