/* What the dashboard adds to htmx: the stream that tells when to load again, the keys, rows, and the page's troubles.
   Everything that can be read is on the page without it. */
"use strict";
(() => {
  const pulse = () => document.getElementById("pulse");
  let stream = null;
  let last = "";

  const say = (kind, text) => {
    const mark = pulse();
    if (!mark) return;
    mark.dataset.kind = kind;
    mark.title = text;
    mark.setAttribute("aria-label", text);
  };

  const open = () => {
    if (stream || document.hidden || !pulse()) return;
    stream = new EventSource("/live");
    stream.addEventListener("live", () => {
      say("good", "live updates: on");
      document.body.dispatchEvent(new CustomEvent("live"));
    });
    stream.addEventListener("away", () => say("bad", "live updates: the database is away"));
    stream.onerror = () => {
      say("bad", "live updates: not connected");
      if (stream.readyState === EventSource.CLOSED) {
        stop();
        setTimeout(open, 2000);
      }
    };
  };

  const stop = () => {
    stream?.close();
    stream = null;
  };

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      stop();
      say("quiet", "live updates: paused");
    } else {
      open();
      document.body.dispatchEvent(new CustomEvent("live"));
    }
  });
  addEventListener("pagehide", stop);

  /* A page that has not changed is not put in again, so that a selection in it stays. */
  document.addEventListener("htmx:before:swap", (event) => {
    const ctx = event.detail.ctx;
    if (ctx.sourceElement?.id !== "live" || ctx.response.status >= 400) return;
    document.getElementById("trouble")?.replaceChildren();
    const found = new DOMParser().parseFromString(ctx.text, "text/html").getElementById("live")?.innerHTML ?? "";
    if (found === last) event.preventDefault();
    last = found;
  });

  document.addEventListener("htmx:error", () => say("bad", "live updates: not connected"));

  /* Notices go when they are clicked; those that say all is well, after a while. */
  document.addEventListener("htmx:after:swap", () => {
    for (const notice of document.querySelectorAll("#notices .notice.done:not([data-seen])")) {
      notice.dataset.seen = "";
      setTimeout(() => notice.remove(), 15000);
    }
  });
  document.addEventListener("click", (event) => {
    event.target.closest?.("#notices .notice p:not(:has(a:hover))")?.closest(".notice").remove();
  });

  /* All the boxes of a table at once. */
  document.addEventListener("change", (event) => {
    if (!event.target.matches?.("[data-all]")) return;
    for (const box of document.querySelectorAll(`input[name="${CSS.escape(event.target.dataset.all)}"]`)) {
      box.checked = event.target.checked;
    }
  });

  const rows = () => [...document.querySelectorAll("[data-row]")];
  const places = { o: "/", j: "/jobs", d: "/dead-letters", s: "/schedules", w: "/workers" };
  let going = false;

  const step = (by) => {
    const all = rows();
    if (!all.length) return;
    const now = all.findIndex((row) => row.contains(document.activeElement));
    const next = all[now < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, now + by))];
    const link = next.querySelector("a[href]") ?? next;
    link.focus();
    next.scrollIntoView({ block: "nearest" });
  };

  document.addEventListener("keydown", (event) => {
    const keys = document.getElementById("keys");
    if (event.ctrlKey || event.metaKey || event.altKey || keys?.open) return;
    if (event.target.matches("input, textarea, select, [contenteditable]")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (going) {
      going = false;
      if (places[event.key]) location.assign(places[event.key]);
      return;
    }
    const does = {
      "/": () => {
        const field = document.querySelector("[data-search]");
        if (field) field.focus();
        else location.assign("/jobs#search");
      },
      j: () => step(1),
      k: () => step(-1),
      g: () => {
        going = true;
        setTimeout(() => (going = false), 1500);
      },
      "?": () => keys?.showModal(),
    }[event.key];
    if (does) {
      event.preventDefault();
      does();
    }
  });

  if (location.hash === "#search") document.querySelector("[data-search]")?.focus();

  /* An error's page is loaded again while the server says that it will pass. */
  if (document.querySelector("[data-again]")) setTimeout(() => location.reload(), 3000);

  open();
})();
