"""The HTTP API's routes over schedules and inboxes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from web_tools import assert_problem, audit, bearer, served

from pgqueue import store
from pgqueue.errors import NotFoundError
from pgqueue.notifications import Inbox


@pytest.fixture
def api(dsn):
    with served(dsn) as made:
        yield made


def test_schedules_are_shown_paused_resumed_and_run_with_an_audit_row_each(api, queue, sql):
    queue.schedules.add("nightly", cron="0 3 * * *", type="a", payload={"secret": 1})
    sql("DELETE FROM pgqueue.audit")
    token = bearer(api.token("ops", "control", "read"))
    (row,) = api.http.get("/api/schedules", headers=token).json()
    assert (row["name"], row["paused"], "secret" in str(row)) == ("nightly", False, False)
    assert api.http.post("/api/schedules/nightly/pause", headers=token).json()["paused"] is True
    assert api.http.post("/api/schedules/nightly/resume", headers=token).json()["paused"] is False
    made = api.http.post("/api/schedules/nightly/run", headers=token)
    assert (made.status_code, made.json()) == (201, {"job_id": "1", "status": "pending"})
    assert_problem(api.http.post("/api/schedules/none/run", headers=token), 404)
    mine = bearer(api.token("mine", "control", types=["b"]))
    assert_problem(api.http.post("/api/schedules/nightly/run", headers=mine), 403)
    assert [row[:3] for row in audit(sql)] == [
        ("ops", f"schedules.{act}", "nightly") for act in ("pause", "resume", "run")
    ]


def test_a_schedule_is_made_changed_and_removed_by_an_operator_with_an_audit_row_each(api, queue, sql):
    admin = bearer(api.token("ops", "admin"))
    new = {"name": "daily/report", "cron": "0 3 * * *", "type": "resize", "tz": "Europe/Berlin"}
    bad = api.http.post("/api/schedules", json={**new, "payload": {"width": 1}}, headers=admin)
    assert assert_problem(bad, 422)["errors"][0]["loc"] == ["body", "payload", "image"]
    new["payload"] = {"image": "a"}
    for wrong in ({"cron": "every day"}, {"tz": "Mars/Olympus"}, {"type": "a b"}, {"overlap": "never"}, {"other": 1}):
        assert_problem(api.http.post("/api/schedules", json={**new, **wrong}, headers=admin), 422)
    made = api.http.post("/api/schedules", json=new, headers=admin)
    assert made.status_code == 201
    assert made.json()["operator"]["payload"] == {"image": "a"}
    assert "resize" in " ".join(made.json()["warnings"]), "nobody executes it yet"
    assert_problem(api.http.post("/api/schedules", json=new, headers=admin), 409)
    (first, second) = api.http.get("/api/schedules/daily/report/next?number=2", headers=admin).json()
    assert (datetime.fromisoformat(second) - datetime.fromisoformat(first)).days == 1
    assert datetime.fromisoformat(first).hour == 3
    rules = {"set": {"cron": "@every 5m", "payload": {"image": "b"}}, "reset": ["tz"]}
    changed = api.http.patch("/api/schedules/daily/report/rules", json=rules, headers=admin)
    assert changed.status_code == 200
    assert changed.json()["operator"] == {"cron": "@every 5m", "type": "resize", "payload": {"image": "b"}}
    wrong = {"set": {"payload": {"image": 5}}}
    assert_problem(api.http.patch("/api/schedules/daily/report/rules", json=wrong, headers=admin), 422)
    assert_problem(api.http.patch("/api/schedules/daily/report/rules", json={"reset": ["cron"]}, headers=admin), 422)
    ran = api.http.post("/api/schedules/daily/report/run", headers=admin).json()
    assert queue.get(int(ran["job_id"])).payload == {"image": "b"}
    (fire,) = api.http.get("/api/schedules/daily/report/fires", headers=admin).json()
    assert (fire["outcome"], fire["job_id"]) == ("manual", ran["job_id"])
    narrow = bearer(api.token("mail", "admin", types=["mail"]))
    for method, path in (("PATCH", "daily/report/rules"), ("DELETE", "daily/report"), ("GET", "daily/report/next")):
        body = {} if method == "PATCH" else None
        assert_problem(api.http.request(method, f"/api/schedules/{path}", json=body, headers=narrow), 403)
    assert_problem(api.http.post("/api/schedules", json={**new, "name": "x"}, headers=narrow), 403)
    assert api.http.delete("/api/schedules/daily/report", headers=admin).status_code == 200
    assert_problem(api.http.delete("/api/schedules/daily/report", headers=admin), 404)
    with pytest.raises(NotFoundError):
        queue.schedules.get("daily/report")
    acts = [row[0] for row in sql("SELECT action FROM pgqueue.audit WHERE actor = 'ops' ORDER BY id")]
    assert acts == ["schedules.add", "schedules.change", "schedules.run", "schedules.remove"]


def test_an_inbox_is_read_by_pages_and_marked_read_with_an_audit_row(dsn, api, sql):
    message = {
        "jobId": 7, "eventType": "job.end", "title": "T", "message": "M", "priority": "high", "tags": ["a"],
        "at": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    with Inbox(dsn) as inbox:
        for number in range(3):
            inbox._session.run(store.inbox.put(["ann", "bob"], number, message))
    token = bearer(api.token("ops", "payload", "control"))

    def page(**query):
        return api.http.get("/api/notifications", params={"recipient": "ann", **query}, headers=token).json()

    first = page(limit=2)
    assert (len(first["notifications"]), first["unread"]) == (2, 3)
    assert first["notifications"][0]["job_id"] == "7"
    last = page(limit=2, before=first["next"])
    assert (len(last["notifications"]), last["next"]) == (1, None)
    one = first["notifications"][0]["id"]
    marked = api.http.post("/api/notifications/read", json={"recipient": "ann", "ids": [one]}, headers=token)
    assert marked.json() == {"read": 1}
    assert page(unread=True)["unread"] == 2
    assert one not in [row["id"] for row in page(unread=True)["notifications"]]
    assert api.http.post("/api/notifications/read", json={"recipient": "ann"}, headers=token).json() == {"read": 2}
    assert page(recipient="bob")["unread"] == 3
    assert_problem(api.http.get("/api/notifications", headers=token), 422)
    assert_problem(api.http.get("/api/notifications?recipient=%00", headers=token), 422)
    narrow = bearer(api.token("mail", "admin", types=["mail"]))
    assert_problem(api.http.get("/api/notifications?recipient=ann", headers=narrow), 403)
    assert_problem(api.http.post("/api/notifications/read", json={"recipient": "ann"}, headers=narrow), 403)
    rows = sql("SELECT actor, action, subject, details->>'read' FROM pgqueue.audit ORDER BY id")
    assert rows == [("ops", "notifications.read", "ann", "1"), ("ops", "notifications.read", "ann", "2")]
