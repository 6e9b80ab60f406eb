"""The dashboard: pages rendered here, made live by htmx and a stream of events, charts by uPlot. No build step.

How a screen is added: one file in `screens/` with a `router`, one template in `templates/`, its module in
`screens.SCREENS`, its entry in `navigation.ENTRIES` (those of the plan are there).

- A page is `@router.get` with `Annotated[Principal, Depends(Needs(Scope.READ))]`, as the API's routes declare their
  scope; it looks with `services.look` or `services.readers.kept` (never a statement of its own in a page) and returns
  `pages.page(request, "name.html", …)`. What the API narrows by a token's types and queues, and what it hides without
  the scope `payload` (`services.narrow`, `services.view`), a page narrows and hides by the same functions.
- An act is `@router.post` with `form: Form` (`forms.py`): it does what the API's route does, by the same function,
  audit row included, and returns `pages.notice(request, "what was done")`. No GET changes anything. Errors are raised:
  `ProblemError` or any `PgQueueError` becomes a notice to htmx and a page to others.
- A template extends `layout.html`: `title`, `content` (headline, forms), `live` (what changes by itself: loaded again
  each second and morphed, so rows and all with a state carry an `id`), `after`. `{% import "macros.html" as ui with
  context %}`: `ui.time(at)`, `ui.span(seconds)`, `ui.count(n)`, `ui.badge(state)`, `ui.table(caption, heads)`,
  `ui.empty(text, command)`, `ui.act(path, label, ask=…, fields=…)` (a form with one button), `ui.token()` in every
  other form, whose acts go by `hx-post` to `#notices` with `hx-swap="beforeend"`. A row for `j` and `k`: `data-row`.
  The field for `/`: `data-search`.
- Everything is escaped (autoescape, StrictUndefined); `| safe` and `Markup` are not used; no script, style or `style=`
  stands in a page (the policy refuses it); no user's text becomes a URL's scheme or an attribute of htmx.
- It reads without JavaScript, on a phone, in both colour schemes, and axe-core finds nothing: tests/test_dashboard_*
  show it, with the fixtures `page` and `site` (tests/browser_tools.py).

`gate` stands before it, `session` is the cookie, `pages` renders, `application` composes. Static files that are not
ours are in `static/vendor/`, with their versions, sources and digests (`scripts/vendor` fetches them again).
"""

from __future__ import annotations
