"""Mail as jobs: the producer's defaults, and whole ways from an enqueue to a real SMTP server through dispatchers."""

from __future__ import annotations

import asyncio
import signal

import pytest
from mail_tools import PASSWORD, SENDER, USER, Certificates, SmtpServer, with_auth
from support import dispatchers, eventually
from support import finished as finished_within
from test_mail import NAMES, SAMPLES, sample

from pgqueue import AsyncQueue, JobOptions, JobState, Registry
from pgqueue.cli.applications import load_registry
from pgqueue.config import Settings
from pgqueue.errors import ConfigurationError, InvalidPayloadError
from pgqueue.jobs.mail import MailerProducer, SmtpMailerService, WelcomeInput, models, register_mailer

FAST = "fixed:0.1"


def finished(queue, job):
    """The job when it is finished; some of these begin whole processes and connections first."""
    return finished_within(queue, job, 60)


@pytest.fixture
def server():
    with SmtpServer() as running:
        yield running


def smtp_settings(server: SmtpServer, **more: object) -> dict[str, object]:
    """What makes `pgqueue dispatcher` execute mails."""
    return {
        "smtp_host": "localhost",
        "smtp_port": server.port,
        "smtp_security": "plain",
        "smtp_sender": SENDER,
        "smtp_timeout": 5,
        **more,
    }


# The producer


@pytest.mark.parametrize("name", NAMES)
def test_each_mail_is_enqueued_with_its_type_payload_and_the_defaults(queue, name):
    job = getattr(MailerProducer(queue), f"enqueue_{name}")(sample(name))
    stored = queue.get(job.id)
    assert stored.type == next(mail.job_type for mail in models.MAILS if mail.name == name)
    assert set(stored.payload) == set(SAMPLES[name][0])
    assert stored.payload["email"] == "ada@example.com"
    assert (stored.queue, stored.max_attempts, stored.timeout) == ("default", 4, 30.0)


def test_defaults_are_overridden_by_the_producer_s_options_by_a_call_s_and_by_its_keywords(queue):
    producer = MailerProducer(queue, JobOptions(queue="mail", max_attempts=9, delay=60))
    mail = WelcomeInput(email="ada@example.com", name="Ada")
    first = producer.enqueue_welcome_email(mail)
    assert (first.queue, first.max_attempts, first.timeout, first.state) == ("mail", 9, 30.0, JobState.SCHEDULED)
    second = producer.enqueue_welcome_email(mail, options=JobOptions(max_attempts=2, timeout=5), timeout=7, delay=0)
    assert (second.queue, second.max_attempts, second.timeout, second.state) == ("mail", 2, 7.0, JobState.PENDING)
    keyed = [producer.enqueue_welcome_email(mail, unique_key="ada") for _ in range(2)]
    assert keyed[0].id == keyed[1].id


def test_a_mail_is_enqueued_in_the_caller_s_transaction(queue, dsn):
    import psycopg

    producer = MailerProducer(queue)
    with psycopg.connect(dsn) as connection:
        producer.enqueue_welcome_email(WelcomeInput(email="ada@example.com", name="Ada"), connection=connection)
        connection.rollback()
    assert queue.counts()["pending"] == 0


def test_the_producer_serves_an_async_queue_too(dsn):
    async def enqueue():
        async with AsyncQueue(dsn) as queue:
            job = await MailerProducer(queue).enqueue_welcome_email(WelcomeInput(email="ada@example.com", name="Ada"))
            return await queue.get(job.id)

    assert asyncio.run(enqueue()).payload == {"email": "ada@example.com", "name": "Ada"}


def test_the_model_of_another_mail_is_refused_and_nothing_is_enqueued(queue):
    with pytest.raises(InvalidPayloadError):
        MailerProducer(queue).enqueue_welcome_email(sample("invitation"))
    assert sum(queue.counts().values()) == 0


# What becomes of the job


@pytest.fixture
def served(started, server):
    """A dispatcher in this process that sends to `server`, with a short wait between tries."""
    registry = Registry()
    register_mailer(registry, SmtpMailerService(server.settings()), backoff=FAST)
    return started(registry)


def test_a_5xx_fails_the_job_at_once_and_a_4xx_lets_it_be_tried_again(served, server, queue):
    producer = MailerProducer(queue)
    server.replies["rcpt"] = ["550 5.1.1 no such user"]
    refused = finished(queue, producer.enqueue_welcome_email(sample("welcome_email")))
    assert (refused.state, refused.reason, refused.attempt) == ("failed", "discarded", 1)
    assert "550 5.1.1 no such user" in refused.errors[-1]["message"]
    server.replies["rcpt"] = ["451 4.3.0 busy", "452 4.2.2 full"]
    sent = finished(queue, producer.enqueue_welcome_email(sample("welcome_email")))
    assert (sent.state, sent.attempt, len(sent.errors)) == ("completed", 3, 2)
    ((_, message),) = server.received
    assert message["Message-ID"] == sent.result["messageId"]


def test_four_refusals_for_now_are_enough(served, server, queue):
    server.replies["data"] = ["451 busy"] * 5
    failed = finished(queue, MailerProducer(queue).enqueue_payment_success(sample("payment_success")))
    assert (failed.state, failed.reason, failed.attempt) == ("failed", "error", 4)
    assert server.replies["data"] == ["451 busy"]


def test_a_payload_that_does_not_fit_is_not_tried_again(served, server, queue):
    bad = queue.enqueue(models.JOB_TYPE_WELCOME, {"email": "ada@example.com\r\nBcc: eve@example.com", "name": "Ada"})
    failed = finished(queue, bad)
    assert (failed.state, failed.reason, failed.attempt) == ("failed", "invalid_payload", 1)
    assert not server.received


def test_a_mail_that_was_sent_but_not_acknowledged_comes_twice_with_one_message_id(served, server, queue):
    # The connection breaks after the server has the mail and before it says so.
    def break_once():
        server.before_reply = None
        raise ConnectionResetError

    server.before_reply = break_once
    job = finished(queue, MailerProducer(queue).enqueue_welcome_email(sample("welcome_email")))
    assert (job.state, job.attempt) == ("completed", 2)
    assert [message["Message-ID"] for _, message in server.received] == [job.result["messageId"]] * 2


# Through real dispatcher processes


def test_the_server_restarts_during_a_run_and_every_mail_arrives_once(server, queue, dsn, tmp_path):
    producer = MailerProducer(queue, JobOptions(max_attempts=30, backoff="fixed:0.2"))
    with dispatchers(dsn, tmp_path, 2, **smtp_settings(server)):
        jobs = [producer.enqueue_welcome_email(sample("welcome_email")) for _ in range(10)]
        eventually(lambda: len(server.received) >= 5, 60, message="the first mails are there")
        server.stop()
        jobs += [producer.enqueue_payment_success(sample("payment_success")) for _ in range(5)]
        last = jobs[-1]
        eventually(lambda: queue.get(last.id).errors, 60, message="a mail was tried in vain")
        server.start()
        ended = [finished(queue, job) for job in jobs]
    assert {job.state for job in ended} == {"completed"}
    sent = [message["Message-ID"] for _, message in server.received]
    assert set(sent) == {job.result["messageId"] for job in ended}
    # A stop in the middle of a mail may make it come twice, but never under another Message-ID.
    assert len(set(sent)) == len(jobs)


def test_a_dispatcher_killed_while_it_sends_sends_again_under_the_same_message_id(server, queue, dsn, tmp_path):
    server.silent.set()
    settings = smtp_settings(server, smtp_timeout=60, worker_lease_duration=2.5)
    with dispatchers(dsn, tmp_path, 1, **settings) as (process,):
        job = MailerProducer(queue, JobOptions(backoff=FAST)).enqueue_welcome_email(sample("welcome_email"))
        eventually(lambda: queue.get(job.id).state == "processing", 60)
        process.signal(signal.SIGKILL)
    server.silent.clear()
    (tmp_path / "second").mkdir()
    with dispatchers(dsn, tmp_path / "second", 1, **settings):
        ended = finished(queue, job)
    assert ended.state == "completed"
    assert ended.attempt > 1
    assert [message["Message-ID"] for _, message in server.received] == [ended.result["messageId"]]


def test_starttls_auth_and_templates_by_settings_alone(queue, dsn, tmp_path):
    certificates = Certificates(tmp_path)
    (tmp_path / "welcome_email.txt").write_text("Subject: Ours\n\nHi {{ name }}\n")
    with with_auth(certificates) as server:
        settings = smtp_settings(
            server,
            smtp_security="starttls",
            smtp_username=USER,
            smtp_password=PASSWORD,
            smtp_ca_file=certificates.file,
            mail_templates=tmp_path,
        )
        with dispatchers(dsn, tmp_path, 1, log_level="DEBUG", **settings) as (process,):
            job = finished(queue, MailerProducer(queue).enqueue_welcome_email(sample("welcome_email")))
            log = process.text()
        assert job.state == "completed"
        assert [message["Subject"] for _, message in server.received] == ["Ours"]
    assert PASSWORD not in log + str(job.as_dict())


def test_mails_are_executed_where_a_server_is_configured_and_nowhere_else(tmp_path):
    names = {mail.job_type for mail in models.MAILS}
    assert not names & {one.type for one in load_registry(Settings(workspace_root=tmp_path))}
    configured = Settings(workspace_root=tmp_path, smtp_host="localhost", smtp_sender=SENDER)
    assert names <= {one.type for one in load_registry(configured)}
    with pytest.raises(ConfigurationError, match="smtp_sender"):
        load_registry(Settings(workspace_root=tmp_path, smtp_host="localhost"))
