"""The screens of jobs in a browser: acts, the live page, forms, and what a form from elsewhere cannot do."""

from __future__ import annotations

import contextlib
import itertools
import re

import httpx2 as httpx
import psycopg
import pytest
from browser_tools import opened, serving
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from soak import say
from support import eventually

from pgqueue import NewJob, Queue

_numbers = itertools.count()


@pytest.fixture
def own_type():
    """A type of the test's own: the other tests' jobs are beside it."""
    return f"kept{next(_numbers)}"


@pytest.fixture
def client(site):
    """A client of the site's queue."""
    with Queue(site.dsn) as made:
        yield made


@pytest.fixture
def rows(site):
    """SQL on the site's database."""
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        yield lambda text, *values: connection.execute(text, values).fetchall()


def notice(page):
    """The newest notice's text."""
    page.wait_for_selector("#notices .notice")
    return page.locator("#notices .notice").last.inner_text()


def test_a_job_is_enqueued_by_the_form_of_its_schema_and_seen_to_complete(page):
    page.goto("/enqueue")
    page.select_option("#choose-type", "greet")
    page.click("text=Show its fields")
    assert page.locator("#enqueue").get_by_text("who is greeted").count() == 1
    page.get_by_label("name (needed)").fill("Ada")
    page.get_by_label("times").fill("3")
    page.get_by_label("loud").check()
    page.locator("#enqueue").get_by_role("button", name="Enqueue").click()
    assert re.match(r"Job \d+ is enqueued: pending", notice(page))
    page.click("#notices a")
    page.wait_for_selector("#where .badge.completed")
    assert '"greeted": "Ada"' in page.locator("#result").inner_text()
    assert '"times": 3' in page.locator("#payload").inner_text()
    assert "jobs.enqueue" in page.locator("table").inner_text()


def test_a_payload_that_breaks_its_schema_is_a_notice_that_names_the_field(page, rows):
    page.goto("/enqueue?type=greet")
    page.get_by_label("name (needed)").fill("Ada")
    page.get_by_label("times").evaluate("field => { field.type = 'text'; field.value = 'many' }")
    page.locator("#enqueue").get_by_role("button", name="Enqueue").click()
    page.wait_for_selector("#notices .notice.failed")
    assert "times" in notice(page)


@contextlib.contextmanager
def stopped(dsn):
    """The database cannot be reached."""
    name = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(make_conninfo(dsn, dbname="postgres"), autocommit=True) as admin:

        def rename(old, new):
            admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [old])
            with contextlib.suppress(psycopg.errors.ObjectInUse):
                admin.execute(f"ALTER DATABASE {old} RENAME TO {new}")
                return True

        eventually(lambda: rename(name, f"{name}_away"))
        try:
            yield
        finally:
            rename(f"{name}_away", name)


def test_the_delayed_print_is_registered_and_the_failure_is_told_when_the_database_is_away(chromium, dsn):
    with serving(dsn, api_rate_limit_storage_type="memory") as own, opened(chromium, own) as page:
        page.goto("/enqueue")
        page.fill("#message", "from a browser")
        page.fill("#delay_seconds", "3600")
        page.click("text=Register delayed print")
        assert re.match(r"Registered: job \d+ prints its message in 3600 s", notice(page))
        with psycopg.connect(dsn) as connection:
            rows = connection.execute("SELECT payload, max_attempts FROM pgqueue.jobs").fetchall()
        assert rows == [({"message": "from a browser"}, 11)]
        with stopped(dsn):
            page.wait_for_selector("#pulse[data-kind=bad]")
            page.click("text=Register delayed print")
            page.wait_for_selector("#notices .notice.failed")
            assert "the database cannot be reached" in notice(page)
            assert page.goto("/jobs").status == 503
        page.wait_for_selector("h1:has-text('Jobs')")
        page.goto("/enqueue")
        page.click("text=Register delayed print")
        page.wait_for_selector("#notices .notice.done")


def test_a_job_is_cancelled_replayed_and_changed_and_the_page_follows(page, client, rows, own_type):
    job = client.enqueue(own_type, {"a": 1}, delay=3600)
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"/jobs/{job.id}")
    page.fill("#priority", "-5")
    page.click("text=Set priority")
    assert notice(page) == f"Job {job.id} has priority -5."
    page.click("text=Run now")
    page.wait_for_selector("#where .badge.pending")
    page.click(".acts >> text=Cancel")
    page.wait_for_selector("#where .badge.cancelled")
    page.reload()
    page.click("text=Replay with another payload")
    page.fill("#other", '{"a": 2}')
    page.click("#replay-with button")
    new = int(re.search(r"as job (\d+)", notice(page))[1])
    assert client.get(new).payload == {"a": 2}
    acts = {action for (action,) in rows("SELECT action FROM pgqueue.audit WHERE subject = %s", str(job.id))}
    assert acts >= {"jobs.cancel", "jobs.reschedule", "jobs.set_priority"}


def test_what_happens_elsewhere_is_seen_without_loading_the_page_again(page, client, own_type):
    page.goto(f"/jobs?type={own_type}")
    page.wait_for_selector(".empty")
    page.evaluate("window.here = true")
    job = client.enqueue(own_type)
    page.wait_for_selector(f"#job-{job.id} .badge.pending")
    page.check(f"#job-{job.id} input")
    other = client.enqueue(own_type, delay=3600)
    page.wait_for_selector(f"#job-{other.id}")
    assert page.is_checked(f"#job-{job.id} input"), "what was picked stays picked"
    client.cancel(job.id)
    page.wait_for_selector(f"#job-{job.id} .badge.cancelled")
    assert page.evaluate("window.here")


def test_a_hidden_tab_closes_its_stream(page):
    page.goto("/")
    page.wait_for_selector("#pulse[data-kind=good]")
    page.evaluate(
        "() => { Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true });"
        " window.away = true; document.dispatchEvent(new Event('visibilitychange')) }"
    )
    page.wait_for_selector("#pulse[data-kind=quiet]")
    page.evaluate("() => { window.away = false; document.dispatchEvent(new Event('visibilitychange')) }")
    page.wait_for_selector("#pulse[data-kind=good]")


def test_an_act_on_all_that_match_is_done_after_their_number_is_confirmed(page, client, rows, own_type):
    jobs = [client.enqueue(own_type, delay=3600) for _ in range(3)]
    page.goto(f"/jobs?state=scheduled&type={own_type}")
    page.click("text=Cancel all that match")
    page.wait_for_selector("h1:has-text('Cancel 3 jobs?')")
    assert {client.get(job.id).state for job in jobs} == {"scheduled"}, "nothing is done before"
    late = client.enqueue(own_type, delay=3600)
    page.click("main button.main")
    page.wait_for_selector("h1:has-text('Cancel 4 jobs?')")
    page.click("main button.main")
    page.wait_for_selector("h1:has-text('Done')")
    assert {client.get(job.id).state for job in [*jobs, late]} == {"cancelled"}
    page.goto(f"/jobs?state=cancelled&type={own_type}")
    page.check(f"#job-{jobs[0].id} input")
    page.check(f"#job-{jobs[1].id} input")
    page.click("text=Replay the picked")
    assert notice(page) == "replayed: 2 of 2 jobs"


def test_pages_follow_each_other_and_the_filter_stands_in_the_url(page, client, own_type):
    jobs = client.enqueue_many([NewJob(own_type, delay=3600) for _ in range(52)])
    page.goto("/jobs")
    page.keyboard.press("/")
    page.keyboard.type(own_type)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs?*type={own_type}*")
    assert page.locator("tr[data-row]").count() == 50
    page.click("a[rel=next]")
    page.wait_for_url("**before=*")
    assert page.locator("tr[data-row]").count() == 2
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs/{jobs[1].id}")
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("o")
    page.wait_for_selector("h1:has-text('Overview')")


def test_without_javascript_every_screen_reads_and_every_act_is_done(chromium, site, client, own_type):
    job = client.enqueue(own_type, {"a": 1}, delay=3600)
    with opened(chromium, site, java_script_enabled=False) as page:
        page.goto("/")
        assert "processing" in page.locator("dl.figures").first.inner_text()
        page.goto(f"/jobs?type={own_type}")
        page.click(f"#job-{job.id} a")
        assert '"a": 1' in page.locator("#payload").inner_text()
        page.click(".acts >> text=Cancel")
        assert page.locator("h1").inner_text() == "Done"
        page.click("text=Back")
        assert page.locator("#where .badge").inner_text() == "cancelled"


def test_forms_of_other_sites_and_forms_without_their_token_change_nothing(site, client, own_type):
    job = client.enqueue(own_type, delay=3600)
    codes = []
    with httpx.Client(base_url=site.url, headers={"accept": "text/html"}) as http:
        token = re.search(r'name="form_token" value="(\w+)"', http.get(f"/jobs/{job.id}").text)[1]
        path = f"/jobs/{job.id}/cancel"
        for data, headers in (
            ({}, {}),
            ({"form_token": "0" * 64}, {}),
            ({"form_token": token}, {"origin": "https://elsewhere.example"}),
            ({"form_token": token}, {"origin": "null"}),
            ({"form_token": token}, {"sec-fetch-site": "cross-site"}),
        ):
            codes.append(http.post(path, data=data, headers=headers).status_code)
            assert codes[-1] == 403
        codes.append(http.post(path, json={"form_token": token}).status_code)
        assert codes[-1] == 415
        codes.append(http.get(path).status_code)
        assert codes[-1] in {404, 405}, "no GET changes anything"
        state = client.get(job.id).state
        assert state == "scheduled"
        assert http.post(path, data={"form_token": token}, headers={"origin": site.url}).status_code == 200
        eventually(lambda: client.get(job.id).state == "cancelled")
    own, answers = client.get(job.id).state, ", ".join(map(str, codes))
    say(f"{len(codes)} forged requests to cancel a job ({answers}) leave it {state}; by its own form it is {own}")
