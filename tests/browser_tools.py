"""A real browser on the dashboard: one chromium and one server with a dispatcher for all tests of a file.

No longer than that: while playwright is there, its event loop counts as running, and others' `asyncio.run` fails.

Each test gets a context of its own (no cookies of another's) and looks at jobs of types of its own. A test that shows
what happens where the database is away, or where tokens are needed, starts a server of its own: `serving`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = "/usr/bin/chromium"
DEMAND = "PGQUEUE_TEST_BROWSER"
"""Set where the tests in the browser must not be skipped."""
WAIT = 15_000  # milliseconds an element may take to be there
SHOTS = Path(os.environ.get("PGQUEUE_TEST_SCREENSHOTS", "/nonexistent"))
"""Where `screenshot` puts pictures, if it is a directory."""


@dataclass(frozen=True)
class Site:
    """A server, and the queue it shows."""

    url: str
    dsn: str


def why_not() -> str | None:
    """Why there can be no browser here; None: there can."""
    if shutil.which(CHROMIUM) is None:
        return f"the dashboard was not tried in a browser: no {CHROMIUM} (Debian: apt-get install chromium)"
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "the dashboard was not tried in a browser: no playwright (pip install playwright)"
    return None


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser; skips where there is none, unless PGQUEUE_TEST_BROWSER demands it."""
    reason = why_not()
    if reason is not None:
        (pytest.fail if os.environ.get(DEMAND) else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(dsn: str, registry: Any = None, **settings: Any) -> Iterator[Site]:
    """A server of one's own."""
    from web_tools import served

    with served(dsn, registry, api_rate_limit="100000/1", **settings) as api:
        yield Site(api.server.url, dsn)


@contextlib.contextmanager
def opened(browser: Any, site: Site, **context: Any) -> Iterator[Any]:
    """A page in a context of its own; the test fails on what the browser complains about: errors, refused resources."""
    complaints: list[str] = []
    made = browser.new_context(base_url=site.url, **context)
    try:
        made.set_default_timeout(WAIT)
        page = made.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: _hear(message, complaints))
        page.complaints = complaints
        yield page
        assert complaints == []
    finally:
        made.close()


def _hear(message: Any, complaints: list[str]) -> None:
    """Errors of scripts and of the policy; a refused request is an answer, which tests look at themselves."""
    if message.type == "error" and "the server responded with a status" not in message.text:
        complaints.append(message.text)


def screenshot(page: Any, name: str) -> None:
    """A picture of the page, if anybody wants one."""
    if SHOTS.is_dir():
        page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
