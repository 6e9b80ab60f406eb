"""Who signed in with which token, in a browser: what viewers and operators see and may do, and how sessions end."""

from __future__ import annotations

import time
from types import SimpleNamespace

import psycopg
import pytest
from browser_tools import opened, serving
from support import eventually
from web_tools import add_token

SECRET = "what is in the job"
POST = """([path, body]) => fetch(path, {
  method: 'POST', headers: {accept: 'text/html'}, body: new URLSearchParams(body)
}).then(answer => answer.status)"""


@pytest.fixture
def own(dsn):
    """A server of the test's own database."""
    with serving(dsn) as made:
        yield made


def sign_in(page, token):
    page.fill("#token", token)
    page.click("main button")
    page.wait_for_selector(".who")


def posted(page, path, **fields):
    """The status of a form that the page sends by itself, with its form token unless another is given."""
    fields = {"form_token": page.locator("[name=form_token]").first.input_value(), **fields}
    return page.evaluate(POST, [path, fields])


def test_a_viewer_sees_no_act_and_no_payload_and_a_forged_form_is_403(chromium, own, queue):
    job = queue.enqueue("mail", {"body": SECRET}, delay=3600)
    with opened(chromium, own) as page:
        token = add_token(own.dsn, "ann", "read")
        assert page.goto(f"/jobs/{job.id}").status == 401
        sign_in(page, token)
        assert page.url.endswith(f"/jobs/{job.id}")
        assert "ann (viewer)" in page.locator(".who").inner_text()
        for path in (f"/jobs/{job.id}", "/jobs?state=scheduled", "/types", "/queues", "/dead-letters", "/workers"):
            assert page.goto(path).status == 200
            assert page.locator("main form[method=post] button").count() == 0, path
            assert SECRET not in page.content(), path
        assert page.locator("nav >> text=Enqueue").count() == 0
        assert page.goto("/enqueue").status == 403
        assert page.goto(f"/jobs?text={SECRET[:4]}").status == 403
        for path, fields in (
            (f"/jobs/{job.id}/cancel", {}),
            ("/jobs/acts", {"verb": "cancel", "type": "mail", "confirmed": "1"}),
            ("/types/mail/pause", {}),
            ("/queues/default/rules", {"rule-weight": "1"}),
            ("/dead-letters/replay", {"error": "x"}),
            ("/enqueue", {"type": "mail"}),
        ):
            assert posted(page, path, **fields) == 403, path
        assert posted(page, f"/jobs/{job.id}/cancel", form_token="0" * 64) == 403
        assert queue.get(job.id).state == "scheduled"


def test_an_operator_acts_on_jobs_without_seeing_what_is_in_them_and_sets_no_rules(chromium, own, queue):
    jobs = [queue.enqueue("mail", {"body": SECRET}, delay=3600) for _ in range(2)]
    bob, eve = add_token(own.dsn, "bob", "read", "control"), add_token(own.dsn, "eve", "read", "payload")
    with opened(chromium, own) as page:
        page.goto(f"/jobs/{jobs[0].id}")
        sign_in(page, bob)
        assert "bob (operator)" in page.locator(".who").inner_text()
        assert SECRET not in page.content()
        page.once("dialog", lambda dialog: dialog.accept())
        page.click(".acts >> text=Cancel")
        page.wait_for_selector("#where .badge.cancelled")
        assert posted(page, "/types/mail/rules", **{"rule-max_concurrency": "1"}) == 403
        assert posted(page, "/jobs/acts", verb="purge", state="cancelled", confirmed="1") == 403
        assert posted(page, "/types/mail/pause") == 200
        page.context.clear_cookies()
        page.goto(f"/jobs/{jobs[1].id}")
        sign_in(page, eve)
        assert SECRET in page.locator("#payload").inner_text()
        assert page.locator("main form[method=post] button").count() == 0


def test_a_session_that_ended_leads_to_the_form_and_back_to_the_page(chromium, own, queue, monkeypatch):
    job = queue.enqueue("mail", delay=3600)
    path = f"/jobs?state=scheduled&type=mail&before={job.id + 1}"

    def revoke():
        change("revoked_at = clock_timestamp()")

    def expire():
        change("expires_at = clock_timestamp()")

    def grow_old():
        later = SimpleNamespace(time=lambda: time.time() + 13 * 3600)
        monkeypatch.setattr("pgqueue.web.dashboard.session.time", later)

    def change(what):
        with psycopg.connect(own.dsn) as connection:
            connection.execute(f"UPDATE pgqueue.api_tokens SET {what} WHERE name = 'ann'".encode())

    with opened(chromium, own) as page:
        add_token(own.dsn, "root", "admin")
        token = add_token(own.dsn, "ann", "read", "control")
        page.goto(path)
        for end in (revoke, expire, grow_old):
            sign_in(page, token)
            page.wait_for_selector(f"#job-{job.id}")
            assert page.url.endswith(path)
            end()
            page.wait_for_selector("#token")  # the page loads its live part again, and is told
            assert page.url.endswith(path)
            token = add_token(own.dsn, "ann", "read", "control")
        page.fill("#token", "wrong")
        page.click("main button")
        page.wait_for_selector(".notice.failed")
        sign_in(page, token)
        page.wait_for_selector(f"#job-{job.id}")
        assert page.url.endswith(path), "after a wrong token too"
    with opened(chromium, own, java_script_enabled=False) as page:
        page.goto(f"/jobs/{job.id}")
        sign_in(page, token)
        revoke()
        page.click(".acts >> text=Cancel")
        assert page.locator(".notice.failed").count() == 0, "nobody gave a wrong token"
        sign_in(page, add_token(own.dsn, "ann", "read", "control"))
        assert page.url.endswith(f"/jobs/{job.id}")
        assert queue.get(job.id).state == "scheduled"
        page.click(".acts >> text=Cancel")
        eventually(lambda: queue.get(job.id).state == "cancelled")
