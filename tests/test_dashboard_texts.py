"""What users write is shown as text: thirty attempts to be markup, in every field that can hold text, on every screen.

Besides, what tools can tell of every screen: axe-core finds nothing, in both schemes and on a phone; vendored files
are those that VENDOR.json names.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import psycopg
from browser_tools import opened, screenshot
from fastapi.routing import APIRoute
from soak import say
from web_tools import PROBES

from pgqueue import Queue
from pgqueue.web.access import Needs
from pgqueue.web.dashboard.application import page_routes

ROOT = Path(__file__).parents[1]
AXE = ROOT / "tests" / "vendor" / "axe.js"
SCREENS = ("/", "/jobs", "/enqueue", "/enqueue?type=greet", "/jobs?state=failed", "/nothing-here")
CORPUS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><iframe srcdoc='<script>alert(1)</script>'>",
    "</script><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</pre><b id=injected>x</b>",
    "<b id=injected>bold</b>",
    "<a href=javascript:alert(1)>x</a>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    '" autofocus onfocus=alert(1) x="',
    "{{ 7 * 7 }}{% raw %}",
    "{{ config.__class__ }}",
    "${alert(1)}",
    "`;alert(1);//",
    "<!--<img src='--><img src=x onerror=alert(1)>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<style>*{display:none}</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>",
    "<form action=//evil.example><button>x</button></form>",
    "<div hx-get=/logout hx-trigger=load>x</div>",
    "<template hx type=partial hx-target=#main>x</template>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202e<script>alert(1)</script>\u2028\u2029",
)
MARKS = "#injected, [onerror], [onload], [srcdoc], main iframe, main base, [href^='javascript'], [hx-get='/logout']"


def enqueue_texts(dsn):
    """Jobs, live and finished, whose every field is one of the corpus; the last has all of it. The live ones' ids."""
    with Queue(dsn) as queue, psycopg.connect(dsn, autocommit=True) as connection:
        ids = []
        for number, text in enumerate(CORPUS):
            texts = CORPUS if number == len(CORPUS) - 1 else (text,)
            payload = {"nested": [{one: one} for one in texts]}
            job = queue.enqueue(
                "texts", payload, unique_key=text, concurrency_key=text, headers={"h": text}, delay=3600
            )
            errors = [{"attempt": 1, "class": one, "message": one, "traceback": one, "where": one} for one in texts]
            progress = {"percent": 5, "message": text}
            connection.execute(
                "UPDATE pgqueue.jobs SET errors = %s, progress = %s, reason = 'error', attempt = 1 WHERE id = %s",
                [json.dumps(errors), json.dumps(progress), job.id],
            )
            for one in texts:
                connection.execute(
                    "INSERT INTO pgqueue.audit (actor, action, subject, details) VALUES (%s, %s, %s, %s)",
                    [one, one, str(job.id), json.dumps({"x": one})],
                )
            ids.append(job.id)
        connection.execute(
            "INSERT INTO pgqueue.finished_jobs (id, created_at, run_at, finished_at, attempt, released, priority, "
            "state, type, queue, payload, result, errors, unique_key) SELECT -id, created_at, run_at, now(), 1, 0, 0, "
            "'failed', type, queue, payload, payload, errors, unique_key FROM pgqueue.jobs WHERE type = 'texts'"
        )
        return ids


def test_what_users_write_is_text_on_every_screen(chromium, site):
    ids = enqueue_texts(site.dsn)
    looked = Counter()
    with opened(chromium, site) as page:
        page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
        for path in ("/jobs?type=texts", "/jobs?state=failed&type=texts", f"/jobs/{ids[-1]}"):
            page.goto(path, wait_until="domcontentloaded")
            page.wait_for_selector("#pulse[data-kind=good]")
            looked["screens"] += 1
            looked["markup"] += page.locator(MARKS).count()
            assert looked["markup"] == 0, path
            assert page.locator("script").count() == 2, "those of the layout"
        assert page.locator(".timeline pre").count() == page.locator("table tbody tr").count() == len(CORPUS)
        assert {one.inner_text() for one in page.locator("table tbody td:nth-child(2)").all()} >= {CORPUS[0], CORPUS[8]}
        for job_id, text in zip(ids, CORPUS, strict=True):
            for path in (f"/jobs/{job_id}", f"/jobs?error={quoted(text)}&key={quoted(text)}&text={quoted(text)}"):
                html = page.request.get(path, headers={"accept": "text/html"}).text()
                assert "texts" in html or "No job matches" in html
                assert not {"<", '"', "'"} & set(text) or text not in html, f"{text} stands as it is in {path}"
                looked["pages"] += 1
    say(
        f"{len(CORPUS)} attempts to be markup, on {looked['screens']} screens of a browser and {looked['pages']} pages "
        f"as text: {looked['markup']} became elements, {len(page.complaints)} dialogs or errors"
    )


def test_axe_finds_nothing_on_any_screen_in_either_scheme_and_a_phone_shows_all_of_it(chromium, site):
    with Queue(site.dsn) as queue:
        job = queue.enqueue("greet", {"name": "Ada"}, delay=3600)
        failed = queue.wait(queue.enqueue("fail", {"password": "hunter2"}), 60)
    with opened(chromium, site, bypass_csp=True) as page:
        for path in (*SCREENS, f"/jobs/{job.id}", f"/jobs/{failed.id}"):
            name = path.strip("/").replace("/", "_") or "overview"
            bears_looking_at(page, path, name)
        assert "hunter2" not in page.content(), "what is called a password is hidden"


def quoted(text):
    """As the value of a parameter in a URL."""
    return quote(text, safe="")


def violations(page, options):
    """What axe-core found: the rule, and the places."""
    found = page.evaluate("options => axe.run(options)", options)
    return [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found["violations"]]


def bears_looking_at(page, path, name):
    """A screen in which axe-core finds nothing, in either scheme, and that a phone shows all of; with its pictures."""
    page.set_viewport_size({"width": 1280, "height": 850})
    page.emulate_media(color_scheme="light")
    page.goto(path)
    assert page.locator(MARKS).count() == 0, path
    page.add_script_tag(path=AXE)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    assert violations(page, rules) == [], path
    screenshot(page, f"{name}-light")
    page.emulate_media(color_scheme="dark")
    assert violations(page, {"runOnly": ["color-contrast"]}) == [], f"{path} in the dark"
    screenshot(page, f"{name}-dark")
    page.set_viewport_size({"width": 390, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{path} scrolls sideways on a phone"
    screenshot(page, f"{name}-phone")


def test_every_page_declares_its_scope_and_what_changes_things_is_a_post():
    assert not PROBES & {route.path for route in page_routes()}
    for route in page_routes():
        assert isinstance(route, APIRoute)
        assert route.methods in ({"GET"}, {"POST"})
        needs = [one for one in route.dependant.dependencies if isinstance(one.call, Needs)]
        assert len(needs) == (0 if route.path in {"/login", "/logout"} else 1), route.path


def test_the_vendored_files_are_those_that_are_recorded():
    for path in (ROOT / "pgqueue/web/dashboard/static/vendor", ROOT / "tests/vendor"):
        entries = json.loads((path / "VENDOR.json").read_text())
        assert {entry["file"] for entry in entries} == {one.name for one in path.iterdir()} - {"VENDOR.json"}
        for entry in entries:
            assert hashlib.sha256((path / entry["file"]).read_bytes()).hexdigest() == entry["sha256"], entry["file"]
