"""The HTTP API enqueues, shows and changes jobs; each change has its audit row, and a repeated request is one act."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from soak import say
from support import eventually
from web_tools import Served, assert_problem, audit, bearer, served

from pgqueue import JobState, Registry


@pytest.fixture
def api(dsn):
    with served(dsn) as made:
        yield made


@pytest.fixture
def answers(api):
    """Method and status code of each answer that the client gets."""
    found = []
    api.http.event_hooks["response"].append(lambda answer: found.append((answer.request.method, answer.status_code)))
    return found


def test_a_job_is_enqueued_with_its_options_and_shown_with_its_id_as_text(api, queue, sql):
    options = {"queue": "images", "priority": -3, "delay": 60, "max_attempts": 4, "timeout": 5.5, "headers": {"a": "b"}}
    made = api.http.post("/api/jobs", json={"type": "resize", "payload": {"image": "cat"}, "options": options})
    assert made.status_code == 201
    assert made.json() == {"job_id": "1", "status": "scheduled"}
    job = queue.get(1)
    assert (job.queue, job.priority, job.max_attempts, job.timeout, job.headers) == ("images", -3, 4, 5.5, {"a": "b"})
    shown = api.http.get("/api/jobs/1").json()
    assert shown["job_id"] == "1"
    assert shown["payload"] == {"image": "cat"}
    assert (shown["state"], shown["queue"], shown["errors"]) == ("scheduled", "images", [])
    assert audit(sql) == [("anonymous", "jobs.enqueue", "1", {"type": "resize", "queue": "images"})]


def test_a_payload_that_does_not_fit_its_type_is_422_naming_the_field_and_nothing_is_stored(api, queue, sql):
    body = assert_problem(api.http.post("/api/jobs", json={"type": "resize", "payload": {"width": "wide"}}), 422)
    assert {tuple(one["loc"]) for one in body["errors"]} == {("body", "payload", "image"), ("body", "payload", "width")}
    assert "wide" not in json.dumps(body), "the value itself is not told"
    both = {"jobs": [{"type": "resize", "payload": {"image": "a"}}, {"type": "resize"}]}
    body = assert_problem(api.http.post("/api/jobs/bulk", json=both), 422)
    assert body["errors"][0]["loc"] == ["body", "jobs", "1", "payload", "image"]
    assert sum(queue.counts().values()) == 0
    assert audit(sql) == []


BROKEN = (
    {"type": "a b"},
    {"type": "a", "payload": {"k": "\0"}},
    {"type": "a", "payload": [1]},
    {"type": "a", "options": {"delay": 1, "run_at": "2030-01-01T00:00:00Z"}},
    {"type": "a", "options": {"run_at": "2030-01-01T00:00:00"}},
    {"type": "a", "options": {"delay": -1}},
    {"type": "a", "options": {"backoff": "sometimes"}},
    {"type": "a", "options": {"unique_window": 5}},
    {"type": "a", "options": {"concurrency_key": "x" * 1001}},
    {"type": "a", "options": {"concurrency_key": "é" * 501}},
    {"type": "a", "options": {"tags": [f"{number:0128}" for number in range(8)]}},
    {"type": "a", "option": {}},
    {"type": "'; DROP TABLE pgqueue.jobs; --"},
)
UNREADABLE = (
    b'{"type": "a", "payload": {"k": "\\ud800"}}',
    b'{"type": "a", "payload": {"k": NaN}}',
    b'{"type": "a", "payload": {"k": ' + b"9" * 5000 + b"}}",
    b"{",
    b"[]",
    b"1",
    b"\xff",
)


def test_what_breaks_a_rule_or_cannot_be_read_is_422_or_400(api, queue, answers):
    for body in BROKEN:
        assert_problem(api.http.post("/api/jobs", json=body), 422)
    for text in UNREADABLE:
        answer = api.http.post("/api/jobs", content=text, headers={"Content-Type": "application/json"})
        assert_problem(answer, answer.status_code)
        assert answer.status_code in {400, 422}, text
    pending = queue.counts()["pending"]
    assert pending == 0
    codes = ", ".join(f"{code} x{number}" for code, number in sorted(Counter(code for _, code in answers).items()))
    say(f"{len(BROKEN)} bodies that break a rule, {len(UNREADABLE)} that cannot be read: {codes}; stored {pending}")


def test_many_jobs_are_enqueued_all_or_none(api, queue):
    answer = api.http.post("/api/jobs/bulk", json={"jobs": [{"type": "a", "payload": {"n": n}} for n in range(5)]})
    assert answer.status_code == 201
    assert [one["job_id"] for one in answer.json()["jobs"]] == ["1", "2", "3", "4", "5"]
    assert_problem(api.http.post("/api/jobs/bulk", json={"jobs": []}), 422)
    assert queue.counts()["pending"] == 5


def test_a_job_may_wait_for_others_and_need_tags(api, queue):
    api.http.post("/api/jobs", json={"type": "a"})
    body = {"type": "b", "options": {"after": ["1"], "on_failure": "run", "tags": ["gpu"]}}
    assert api.http.post("/api/jobs", json=body).json() == {"job_id": "2", "status": "waiting"}
    assert api.http.get("/api/jobs/2").json()["tags"] == ["gpu"]
    body["options"]["after"] = ["99"]
    assert_problem(api.http.post("/api/jobs", json=body), 404)


def test_a_taken_unique_key_is_200_with_the_job_that_has_it_or_409(api):
    body = {"type": "a", "options": {"unique_key": "u"}}
    assert api.http.post("/api/jobs", json=body).status_code == 201
    again = api.http.post("/api/jobs", json=body)
    assert (again.status_code, again.json()["job_id"]) == (200, "1")
    body["options"]["on_conflict"] = "raise"
    assert_problem(api.http.post("/api/jobs", json=body), 409)


def test_a_full_queue_is_429_with_a_time_to_come_back(api):
    assert api.http.patch("/api/queues/small/rules", json={"set": {"max_pending": 1}}).status_code == 200
    body = {"type": "a", "options": {"queue": "small"}}
    assert api.http.post("/api/jobs", json=body).status_code == 201
    answer = api.http.post("/api/jobs", json=body)
    assert_problem(answer, 429)
    assert int(answer.headers["retry-after"]) > 0


# Idempotency-Key


def test_the_same_key_gets_the_same_answer_and_one_job(api, queue, sql):
    headers = {"Idempotency-Key": "order-1"}
    first, second = (api.http.post("/api/jobs", json={"type": "a"}, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert queue.counts()["pending"] == 1
    assert len(audit(sql)) == 1


def test_the_same_key_with_another_body_or_address_is_422(api, queue):
    headers = {"Idempotency-Key": "order-1"}
    api.http.post("/api/jobs", json={"type": "a"}, headers=headers)
    assert_problem(api.http.post("/api/jobs", json={"type": "b"}, headers=headers), 422)
    assert_problem(api.http.post("/api/jobs/bulk", json={"jobs": [{"type": "a"}]}, headers=headers), 422)
    assert_problem(api.http.post("/api/jobs", json={"type": "a"}, headers={"Idempotency-Key": "x" * 256}), 422)
    assert queue.counts()["pending"] == 1


def test_keys_of_two_tokens_never_meet(api, queue):
    one, two = (api.token(name, "enqueue") for name in ("one", "two"))
    for token in (one, two):
        headers = {**bearer(token), "Idempotency-Key": "k"}
        assert api.http.post("/api/jobs", json={"type": "a"}, headers=headers).status_code == 201
    assert queue.counts()["pending"] == 2


def test_a_refused_request_keeps_no_answer(api, sql):
    headers = {"Idempotency-Key": "k"}
    api.http.patch("/api/queues/small/rules", json={"set": {"max_pending": 1}})
    body = {"type": "a", "options": {"queue": "small"}}
    api.http.post("/api/jobs", json=body)
    assert_problem(api.http.post("/api/jobs", json=body, headers=headers), 429)
    api.http.patch("/api/queues/small/rules", json={"reset": ["max_pending"]})
    assert api.http.post("/api/jobs", json=body, headers=headers).status_code == 201


def test_a_key_whose_time_is_over_is_free_and_forgotten(api, queue, sql):
    headers = {"Idempotency-Key": "k"}
    api.http.post("/api/jobs", json={"type": "a"}, headers=headers)
    sql("UPDATE pgqueue.idempotency_keys SET expires_at = now() - interval '1 second'")
    assert api.http.post("/api/jobs", json={"type": "b"}, headers=headers).status_code == 201
    sql("UPDATE pgqueue.idempotency_keys SET expires_at = now() - interval '1 second'")
    api.http.post("/api/jobs", json={"type": "a"}, headers={"Idempotency-Key": "other"})
    assert sql("SELECT key FROM pgqueue.idempotency_keys") == [("other",)]
    assert queue.counts()["pending"] == 3


# Lists


def test_jobs_are_listed_by_filter_and_page(api, queue):
    for n in range(5):
        queue.enqueue("a", {"n": n, "word": f"w{n}"}, queue="q" if n % 2 else None, unique_key=f"u{n}")
    queue.enqueue("b", concurrency_key="tenant-1", tags=["gpu"])

    def ids(**query):
        answer = api.http.get("/api/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return [job["job_id"] for job in answer.json()["jobs"]]

    assert ids() == ["6", "5", "4", "3", "2", "1"]
    assert ids(type="b") == ids(key="tenant-1") == ids(tag="gpu") == ["6"]
    assert ids(queue="q") == ["4", "2"]
    assert ids(key="u0") == ["1"]
    assert ids(text="w3") == ["4"]
    assert ids(state="failed") == ids(older_than=3600) == ids(error="Boom") == []
    assert len(ids(newer_than=3600)) == 6
    page = api.http.get("/api/jobs", params={"limit": 4}).json()
    assert page["next"] == "3"
    page = api.http.get("/api/jobs", params={"limit": 4, "before": page["next"]}).json()
    assert ([job["job_id"] for job in page["jobs"]], page["next"]) == (["2", "1"], None)


def test_a_job_that_is_not_there_is_404_and_a_bad_filter_422(api):
    beyond = "before=9999999999999999999"
    for query in ("state=gone", "limit=0", "limit=501", "before=x", beyond, "older_than=-1", "type=a%20b"):
        assert_problem(api.http.get(f"/api/jobs?{query}"), 422)
    for path in ("/api/jobs/99", "/api/jobs/99/explain"):
        assert_problem(api.http.get(path), 404)
    for act in ("cancel", "replay"):
        assert_problem(api.http.post(f"/api/jobs/99/{act}"), 404)
    assert_problem(api.http.get("/api/jobs/9999999999999999999"), 422)
    assert_problem(api.http.get("/api/nothing"), 404)
    assert_problem(api.http.put("/api/jobs/1"), 405)


# Acts


def test_cancel_replay_reschedule_priority_and_explain_with_an_audit_row_each(api, queue, sql, answers):
    token = bearer(api.token("ops", "control", "read", "payload"))
    job = queue.enqueue("resize", {"image": "a"})
    assert api.http.post("/api/jobs/1/priority", json={"priority": 7}, headers=token).json()["priority"] == 7
    assert api.http.post("/api/jobs/1/reschedule", json={"delay": 60}, headers=token).json()["state"] == "scheduled"
    assert api.http.get("/api/jobs/1/explain", headers=token).json()["job_id"] == "1"
    assert_problem(api.http.post("/api/jobs/1/replay", headers=token), 409)
    assert api.http.post("/api/jobs/1/cancel", headers=token).json()["state"] == "cancelled"
    assert_problem(api.http.post("/api/jobs/1/cancel", headers=token), 409)
    assert_problem(api.http.post("/api/jobs/1/priority", json={"priority": 7}, headers=token), 409)
    assert_problem(api.http.post("/api/jobs/1/replay", json={"payload": {}}, headers=token), 422)
    again = api.http.post("/api/jobs/1/replay", json={"payload": {"image": "b"}}, headers=token)
    assert (again.status_code, again.json()["status"]) == (201, "pending")
    new = queue.get(int(again.json()["job_id"]))
    assert (new.payload, new.replay_of) == ({"image": "b"}, job.id)
    rows = audit(sql)
    assert [row[:3] for row in rows] == [
        ("ops", "jobs.set_priority", "1"),
        ("ops", "jobs.reschedule", "1"),
        ("ops", "jobs.cancel", "1"),
        ("ops", "jobs.replay", "1"),
    ]
    codes = [code for method, code in answers if method == "POST"]
    refused = sum(code >= 400 for code in codes)
    say(f"{len(codes)} acts on a job: {len(codes) - refused} done, {refused} refused, audit rows {len(rows)}")


def test_ids_in_explanations_and_findings_are_text(api, queue, sql):
    parent = queue.enqueue("a", delay=60)
    child = queue.enqueue("b", after=[parent])
    explained = api.http.get(f"/api/jobs/{child.id}/explain").json()
    assert (explained["job_id"], explained["details"]) == ("2", {"jobs": ["1"]})
    sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = gen_random_uuid() WHERE id = 1")
    findings = {finding["code"]: finding for finding in api.http.get("/api/doctor").json()}
    assert (findings["orphans"]["details"]["jobs"], findings["orphans"]["details"]["number"]) == (["1"], 1)


def test_acts_on_many_count_first_and_are_audited(api, queue, sql):
    for _ in range(3):
        queue.enqueue("a")
    queue.enqueue("b")
    body = {"filter": {"type": "a"}, "dry_run": True}
    assert api.http.post("/api/jobs/cancel", json=body).json() == {"dry_run": True, "matched": 3, "done": 0}
    assert queue.counts()["cancelled"] == 0
    assert audit(sql) == []
    body["dry_run"] = False
    assert api.http.post("/api/jobs/cancel", json=body).json() == {"dry_run": False, "matched": 3, "done": 3}
    replay = {"filter": {"type": "a", "state": "cancelled"}, "limit": 2}
    assert api.http.post("/api/jobs/replay", json=replay).json()["done"] == 2
    purge = {"filter": {"state": "cancelled"}}
    assert api.http.post("/api/jobs/purge", json=purge).json()["done"] == 3
    assert [row[:2] for row in audit(sql)] == [
        ("anonymous", "jobs.cancel_many"),
        ("anonymous", "jobs.replay_many"),
        ("anonymous", "jobs.purge"),
    ]
    for act in ("cancel", "replay", "purge"):
        assert_problem(api.http.post(f"/api/jobs/{act}", json={"filter": {}}), 422)
    assert_problem(api.http.post("/api/jobs/cancel", json={"filter": {"state": "failed"}}), 422)


# Types, queues, limits, the whole


def test_types_queues_and_limits_are_shown_and_set_with_an_audit_row(api, queue, sql):
    queue.enqueue("demo:a/b", queue="q/1")
    assert api.http.post("/api/types/demo:a/b/pause", json={"seconds": 60}).json()["paused"] is True
    assert api.http.post("/api/types/demo:a/b/resume").json()["paused"] is False
    assert api.http.post("/api/queues/q/1/pause").json()["paused"] is True
    assert api.http.post("/api/queues/q/1/resume").json()["paused"] is False
    limit = api.http.put("/api/limits/demo:a/b", json={"max_concurrency": 3}).json()
    assert limit == {"type": "demo:a/b", "max_concurrency": 3, "set_by": "operator", "processing": 0}
    assert api.http.delete("/api/limits/demo:a/b").json()["max_concurrency"] is None
    rules = api.http.patch("/api/types/demo:a/b/rules", json={"set": {"rate_limit": "5/s", "backoff": "fixed:5"}})
    assert rules.json()["operator"] == {"rate_limit": "5/1", "backoff": "fixed:5:3600:0.2"}
    assert_problem(api.http.patch("/api/types/a/rules", json={"set": {"max_concurrency": 0}}), 422)
    assert_problem(api.http.patch("/api/types/a/rules", json={"set": {"colour": None}}), 422)
    assert_problem(api.http.patch("/api/types/a/rules", json={"reset": ["colour"]}), 422)
    assert [row[1] for row in audit(sql)] == [
        "types.pause",
        "types.resume",
        "queues.pause",
        "queues.resume",
        "types.configure",
        "types.configure",
        "types.configure",
    ]
    eventually(lambda: api.http.get("/api/types").json()[0]["operator"], message="the list is kept for a second")
    assert [row["queue"] for row in api.http.get("/api/queues").json()] == ["q/1"]
    assert [row["type"] for row in api.http.get("/api/limits").json()] == ["demo:a/b"]


def test_the_whole_is_shown_as_the_command_line_shows_it(api, queue, started):
    registry = Registry()

    @registry.executor("fails")
    def fails(job, context):
        raise ValueError("secret 1234")

    started(registry)
    queue.enqueue("fails", {"secret": 1})
    eventually(lambda: queue.counts()["failed"] == 1)
    eventually(lambda: api.http.get("/api/stats").json()["failed"] == 1)
    stats = api.http.get("/api/stats").json()
    assert {state.value for state in JobState} | {"retrying", "epoch", "oldest_pending"} <= stats.keys()
    assert stats["epoch"] == 1
    (leader,) = api.http.get("/api/leader").json()
    assert (leader["name"], leader["alive"]) == ("default", True)
    (term,) = leader["elections"]
    assert (term["epoch"], term["holder"], term["ended_by"]) == (1, leader["holder"], None)
    (worker,) = api.http.get("/api/workers").json()
    assert (worker["alive"], worker["types"]) == (True, ["fails"])
    (failure,) = api.http.get("/api/failures").json()
    assert (failure["example_id"], failure["count"], failure["error"]) == ("1", 1, "ValueError")
    assert {finding["verdict"] for finding in api.http.get("/api/doctor").json()} <= {"ok", "warning", "bad", "unknown"}
    eventually(lambda: api.http.get("/readyz").json()["leader"], message="it is looked at once a second")
    assert api.http.get("/readyz").json()["status"] == "ready"
    assert api.http.get("/api/jobs", params={"error": "ValueError"}).json()["jobs"][0]["job_id"] == "1"

    reader = bearer(api.token("reader", "read"))
    shown = api.http.get("/api/jobs/1", headers=reader)
    assert "1234" not in shown.text
    assert "secret" not in shown.text
    assert shown.json()["errors"][0]["class"] == "ValueError"
    assert_problem(api.http.get("/api/jobs", params={"text": "secret"}, headers=reader), 403)

    def found(error, headers):
        return len(api.http.get("/api/jobs", params={"error": error}, headers=headers).json()["jobs"])

    teller, guesses = bearer(api.token("teller", "read", "payload")), ("ValueError", failure["fingerprint"], "1234")
    assert [found(guess, teller) for guess in guesses] == [1, 1, 1]
    assert [found(guess, reader) for guess in guesses] == [1, 1, 0], "a message is not to be found out by guessing"
    operator, body = bearer(api.token("operator", "control")), {"filter": {"error": "1234"}, "dry_run": True}
    assert api.http.post("/api/jobs/replay", json=body, headers=operator).json()["matched"] == 0
    assert_problem(api.http.get("/api/failures", headers=reader), 403)


# The register endpoint


def test_register_has_its_defaults(api: Served, queue):
    answer = api.http.post("/api/dm-jobqueue/register", json={})
    assert answer.status_code == 201
    assert answer.json() == {"job_id": "1", "status": "registered"}
    job = queue.get(1)
    assert (job.type, job.payload, job.max_attempts) == ("demo:delay_print", {}, 11)
    assert 179.9 < (job.run_at - job.created_at).total_seconds() < 180.1
    assert api.http.post("/api/dm-jobqueue/register").json()["job_id"] == "2"


def test_register_keeps_message_delay_and_retries(api, queue):
    api.http.post("/api/dm-jobqueue/register", json={"message": "hi", "delay_seconds": 5, "max_retry": 0})
    job = queue.get(1)
    assert (job.payload, job.max_attempts) == ({"message": "hi"}, 1)
    assert 4.9 < (job.run_at - job.created_at).total_seconds() < 5.1


def test_register_refuses_a_bad_payload(api, queue):
    wrong = ({"delay_seconds": -1}, {"delay_seconds": "soon"}, {"max_retry": -1}, {"max_retry": 1.5}, {"x": 1}, [])
    for body in wrong:
        assert_problem(api.http.post("/api/dm-jobqueue/register", json=body), 422)
    assert sum(queue.counts().values()) == 0
