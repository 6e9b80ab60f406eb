"""The dashboard's frame in a browser: every page stands, signing in and out, the keys, and the policy."""

from __future__ import annotations

from browser_tools import opened, serving


def test_the_overview_is_live_and_says_so(page):
    page.goto("/")
    page.wait_for_selector("#pulse[data-kind=good]")
    assert page.locator("h1").inner_text() == "Overview"
    assert page.locator("nav a[aria-current=page]").inner_text() == "Overview"


def test_signing_in_takes_a_token_and_signing_out_forgets_it(chromium, dsn):
    with serving(dsn, api_token="a-token-that-is-long-enough") as own, opened(chromium, own) as page:
        answer = page.goto("/")
        assert answer.status == 401
        page.fill("#token", "wrong")
        page.click("main button")
        page.wait_for_selector(".notice.failed")
        page.fill("#token", "a-token-that-is-long-enough")
        page.click("main button")
        page.wait_for_selector("dl.figures")
        assert "environment (admin)" in page.locator(".who").inner_text()
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert "a-token" not in cookie["value"]
        page.click("text=Sign out")
        page.wait_for_selector("#token")
        assert page.context.cookies() == []
