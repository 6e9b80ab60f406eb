"""The screens that operate the queue, in a browser: types, queues, dead letters, schedules, workers, inbox, doctor.

Each test does a screen's acts and sees them in the database and on the page; the last looks at all of them with axe.
"""

from __future__ import annotations

import json

import psycopg
import pytest
from browser_tools import opened
from support import eventually
from test_dashboard_texts import CORPUS, bears_looking_at, quoted

from pgqueue import Inspector, NewJob, Queue

TEXT = " ".join(CORPUS)
FAILED = "SELECT count(*) FROM pgqueue.finished_jobs WHERE errors->-1->>'message' = 'no funds'"


@pytest.fixture
def rows(site):
    """SQL on the site's database."""
    with psycopg.connect(site.dsn, autocommit=True) as connection:

        def run(text, *values):
            cursor = connection.execute(text, values)
            return cursor.fetchall() if cursor.description else []

        yield run


def notice(page):
    """The newest notice's text, once; it is taken away."""
    page.wait_for_selector("#notices .notice")
    text = page.locator("#notices .notice").last.inner_text()
    page.locator("#notices").evaluate("box => box.replaceChildren()")
    return text


def click(page, selector):
    """Click what may ask first."""
    page.once("dialog", lambda dialog: dialog.accept())
    page.click(selector)


def audited(rows, action, subject):
    return rows("SELECT actor, details FROM pgqueue.audit WHERE action = %s AND subject = %s", action, subject)


def test_rules_and_pauses_of_types_and_queues_are_set_and_shown(page, site, rows):
    rows("INSERT INTO pgqueue.queues (name) VALUES ('letters') ON CONFLICT DO NOTHING")
    for base, name, rule, value in (("types", "greet", "max_concurrency", "3"), ("queues", "letters", "weight", "40")):
        row = f"#{base[:-1]}-{name}"
        page.goto(f"/{base}")
        click(page, f"{row} button:has-text('Pause')")
        assert "is paused until it is resumed" in notice(page)
        page.wait_for_selector(f"{row} .badge.paused")
        page.click(f"{row} button:has-text('Resume')")
        assert "dispatched again" in notice(page)
        page.click(f"{row} a:has-text('Edit')")
        page.fill(f"#rule-{rule}", "many")
        page.click("text=Set rules")
        page.wait_for_selector("#notices .failed")
        assert rule in notice(page)
        page.fill(f"#rule-{rule}", value)
        page.click("text=Set rules")
        assert f"{rule} {value}" in notice(page)
        page.fill("#number", "2")
        page.select_option("#unit", "hours")
        page.locator("form:has(#unit) button").click()
        assert "is paused for 2 h" in notice(page)
        page.wait_for_selector("#where .badge.paused")
        assert "resumes in" in page.locator("#where").inner_text()
        page.goto(f"/{base}/{name}/rules")
        page.fill(f"#rule-{rule}", "")
        page.check(f"[name=lifted-{rule}]")
        page.click("text=Set rules")
        assert f"{rule} lifted" in notice(page)
        page.click("button:has-text('Resume')")
        assert "dispatched again" in notice(page)
        with Inspector(site.dsn) as inspector:
            (left,) = [one for one in getattr(inspector, base)() if one[base[:-1]] == name]
        assert (left["operator"], left["paused"]) == ({rule: None}, False)
        assert rows("SELECT count(*) > 4 FROM pgqueue.audit WHERE subject = %s", name) == [(True,)]


def test_a_group_of_dead_letters_is_replayed_by_sample_then_all_then_with_another_payload(page, site, rows):
    with Queue(site.dsn) as queue:
        batch = [NewJob("fail", {"message": "no funds", "number": number}) for number in range(3)]
        for job in queue.enqueue_many(batch):
            queue.wait(job, 60)
    page.goto("/dead-letters?type=fail")
    row = page.locator("tr[data-row]", has_text="no funds")
    row.get_by_role("link", name="Replay …").click()
    page.wait_for_selector("#replay-group")
    group = page.url
    for limit, button, failed in (("1", "Replay 1", 4), ("", "Replay 3", 7)):
        page.fill("#limit", limit)
        page.locator("#replay-group button").click()
        page.get_by_role("button", name=button, exact=True).click()
        assert "again" in page.locator(".notice").inner_text()
        # What runs again fails again, and is one more of the group.
        eventually(lambda number=failed: rows(FAILED)[0][0] == number)
        page.goto(group)
    assert rows("SELECT count(*) FROM pgqueue.audit WHERE action = 'jobs.replay_many'") == [(2,)]
    page.locator("tr[data-row]").last.get_by_text("Edit payload").click()
    page.fill("#payload", '{"message": "changed"}')
    page.click("text=Replay with this payload")
    number = int(notice(page).split(" again as job ")[1].split(".")[0])
    with Queue(site.dsn) as queue:
        assert queue.wait(number, 60).errors[-1]["message"] == "changed"


def test_a_schedule_is_run_paused_and_resumed_and_says_when_it_fires(page, site, rows):
    with Queue(site.dsn) as queue:
        queue.schedules.add("nightly", cron="0 2 * * *", type="greet", payload={"name": "Ada"}, tz="Europe/Berlin")
    page.goto("/schedules")
    row = page.locator("#schedule-nightly")
    assert "02:00" in row.inner_text()
    assert row.locator(".fires li").count() == 5
    click(page, "#schedule-nightly button:has-text('Run now')")
    number = notice(page).split("made job ")[1].split(".")[0]
    page.click("#schedule-nightly button:has-text('Pause')")
    assert "paused" in notice(page)
    page.click("#schedule-nightly button:has-text('Resume')")
    assert "fires again" in notice(page)
    assert rows("SELECT count(*) FROM pgqueue.audit WHERE subject = 'nightly'")[0][0] >= 4
    with Queue(site.dsn) as queue:
        assert queue.wait(int(number), 60).result == {"greeted": "Ada"}


def test_workers_the_leader_and_its_elections_are_shown_and_a_worker_is_drained(page, site, rows):
    with Queue(site.dsn) as queue:
        queue.wait(queue.enqueue("greet", {"name": "Ada"}), 60)
    worker = "00000000-0000-4000-8000-000000000001"
    add_worker(rows, worker, "far.example")
    page.goto("/workers")
    assert page.locator("#lease-default .badge.good").count() == 1
    eventually(lambda: page.reload() and "leads" in page.locator("[id^=epoch-default-]").first.inner_text())
    assert page.locator("[id^=worker-] form").count() == 1, "a dispatcher's own worker is not drained"
    click(page, f"#worker-{worker} button")
    assert "drains" in notice(page)
    page.wait_for_selector(f"#worker-{worker} .badge.warning")
    assert len(audited(rows, "drain_worker", worker)) == 1
    rows("DELETE FROM pgqueue.workers WHERE id = %s", worker)


def add_worker(rows, worker, host):
    """A worker as it registers; its lease ends in an hour."""
    rows(
        "INSERT INTO pgqueue.workers (id, host, pid, version, concurrency, types, tags, remote, "
        "started_at, heartbeat_at, expires_at) VALUES (%s, %s, 4242, '1', 8, '{rare}', '{gpu}', true, "
        "clock_timestamp(), clock_timestamp(), clock_timestamp() + interval '1 hour')",
        worker,
        host,
    )


def test_the_inbox_lists_what_people_were_told_and_marks_it_read(page, rows):
    for number in range(3):
        tell(rows, "ann@example.com", number, f"Report {number}")
    page.goto("/notifications?recipient=ann%40example.com")
    assert page.locator("tr.unread").count() == 3
    page.locator("tr.unread input").first.check()
    page.click("text=Mark the picked read")
    assert "1 notification is read" in notice(page)
    page.click("text=Mark all read")
    assert "2 notifications are read" in notice(page)
    page.goto("/notifications?recipient=ann%40example.com&unread=true")
    assert "Everything is read" in page.locator("main").inner_text()
    assert [row[1] for row in audited(rows, "notifications.read", "ann@example.com")] == [{"number": 1}, {"number": 2}]


def tell(rows, recipient, number, text):
    rows(
        "INSERT INTO pgqueue.notifications (recipient, delivery_id, job_id, event_type, title, message, priority, "
        "tags, at) VALUES (%s, %s, 1, 'report', %s, %s, 'high', ARRAY['night'], clock_timestamp())",
        recipient,
        number,
        text,
        text,
    )


def test_these_screens_show_texts_as_texts_and_axe_finds_nothing(chromium, site, rows):
    rows("INSERT INTO pgqueue.queues (name) VALUES ('letters') ON CONFLICT DO NOTHING")
    add_worker(rows, "00000000-0000-4000-8000-000000000002", TEXT)
    tell(rows, TEXT, 1, TEXT)
    with Queue(site.dsn) as queue:
        job = queue.wait(queue.enqueue("fail", {"message": "texts"}), 60)
        queue.schedules.add("texts", cron="@every 5m", type="greet", payload={"name": TEXT}, enabled=False)
    errors = [{"attempt": 1, "class": TEXT, "message": TEXT, "fingerprint": "texts"}]
    rows("UPDATE pgqueue.finished_jobs SET errors = %s WHERE id = %s", json.dumps(errors), job.id)
    rows("UPDATE pgqueue.schedules SET broken = %s WHERE name = 'texts'", TEXT)
    screens = (
        "/types",
        "/types/greet/rules",
        "/queues",
        "/dead-letters",
        f"/dead-letters/group?error=texts&job={job.id}",
        "/schedules",
        "/workers",
        f"/notifications?recipient={quoted(TEXT)}",
        "/doctor",
    )
    with (
        opened(chromium, site, bypass_csp=True) as page,
        opened(chromium, site, java_script_enabled=False) as plain,
    ):
        page.on("dialog", lambda dialog: page.complaints.append(dialog.message))
        for path in screens:
            name = path.strip("/").split("?")[0].replace("/", "_")
            bears_looking_at(page, path, name)
            assert plain.goto(path).status == 200
            assert plain.locator("h1").inner_text() == page.locator("h1").inner_text()
            assert plain.locator("main table, main .finding, main form").count() > 0, f"{path} without JavaScript"
    rows("DELETE FROM pgqueue.workers WHERE host = %s", TEXT)
