"""The dashboard's pages and forms as sent without a browser: what breaks a rule, and what a narrow token may not."""

from __future__ import annotations

import re

import pytest
from web_tools import served

WORKER = "00000000-0000-4000-8000-000000000001"
TOO_LARGE = "9999999999999999999"


@pytest.fixture
def api(dsn):
    with served(dsn) as made:
        made.http.headers["Accept"] = "text/html"
        yield made


def posted(api, path, **fields):
    """The answer to a form, with the form token of the page to sign in or of an empty one."""
    token = re.search(r'name="form_token" value="(\w+)"', api.http.get("/enqueue").text)
    assert token is not None
    return api.http.post(path, data={"form_token": token[1], **fields})


def test_what_breaks_a_rule_in_a_form_is_told_and_nothing_is_changed(api, queue):
    job = queue.enqueue("mail", delay=3600)
    for path, fields, said in (
        (f"/jobs/{job.id}/reschedule", {"delay": "-5"}, "delay: "),
        (f"/jobs/{job.id}/reschedule", {"delay": "nan"}, "delay: "),
        (f"/jobs/{job.id}/priority", {"priority": "99999"}, "priority: "),
        ("/dead-letters/replay", {"error": "x", "limit": str(2**53 + 1), "confirmed": "1"}, "limit: "),
        ("/enqueue", {"type": "a b"}, "type: "),
        ("/enqueue/delayed-print", {"max_retry": "-1"}, "max_retry: "),
    ):
        answer = posted(api, path, **fields)
        assert (answer.status_code, said in answer.text, "Traceback" in answer.text) == (422, True, False), path
    assert posted(api, "/jobs/acts", verb="cancel", type="none", confirmed="9" * 400).status_code == 200
    left = queue.get(job.id)
    assert (left.state, left.priority, left.run_at) == ("scheduled", job.priority, job.run_at)
    assert queue.counts()["scheduled"] == 1


def test_a_page_before_what_is_no_id_says_so(api):
    for path in ("/jobs", "/notifications"):
        answer = api.http.get(path, params={"before": TOO_LARGE})
        assert (answer.status_code, "before" in answer.text) == (422, True), path


def test_a_job_that_waits_for_others_is_not_offered_another_time(api, queue):
    parent = queue.enqueue("a", delay=3600)
    child = queue.enqueue("b", after=[parent])
    for job, offered in ((parent, 2), (child, 0)):
        page = api.http.get(f"/jobs/{job.id}").text
        assert (page.count(f'action="/jobs/{job.id}/reschedule"'), "Set priority" in page) == (offered, True)


def test_a_narrow_token_reads_no_inbox_drains_no_worker_and_is_offered_no_act_on_others_jobs(api, sql):
    sql("INSERT INTO pgqueue.queues (name) VALUES ('fast')")
    sql("INSERT INTO pgqueue.job_types (type) VALUES ('mail')")
    token = api.token("mail", "admin", types=["mail"])
    assert posted(api, "/login", token=token).status_code == 303
    assert api.http.get("/notifications").status_code == 403
    assert 'href="/notifications"' not in api.http.get("/types").text
    for path, fields in (
        ("/notifications/read", {"recipient": "mail", "which": "all"}),
        (f"/workers/{WORKER}/drain", {}),
        ("/queues/fast/pause", {}),
        ("/queues/fast/rules", {"value-weight": "5"}),
    ):
        assert posted(api, path, **fields).status_code == 403, path
    assert "/types/mail/pause" in api.http.get("/types").text
    assert "/queues/fast/pause" not in api.http.get("/queues").text
    assert "Set rules" not in api.http.get("/queues/fast/rules").text
    assert "Set rules" in api.http.get("/types/mail/rules").text
    assert posted(api, "/types/mail/pause").status_code == 200


def test_the_stream_tells_a_proxy_not_to_hold_it_back(api):
    with api.http.stream("GET", "/live") as answer:
        assert (answer.status_code, answer.headers["x-accel-buffering"]) == (200, "no")


def test_an_empty_inbox_names_the_channel_as_a_config_does(api):
    assert "the channel inbox" in api.http.get("/notifications").text
