/* The overview's charts: points from /series, drawn by uPlot in the sheet's colours, again when those change. */
"use strict";
(() => {
  const kinds = {
    rate: { lines: [["completed", "good"], ["failed", "bad"]], unit: "" },
    wait: { lines: [["wait_p50", "blue"], ["wait_p95", "violet"], ["wait_p99", "warning"]], unit: "s" },
    run: { lines: [["run_p50", "blue"], ["run_p95", "violet"], ["run_p99", "warning"]], unit: "s" },
  };
  const WINDOW = 900;
  const points = new Map();
  let step = 5;
  let last = 0;
  let busy = false;
  let charts = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const shown = (value, unit) => {
    if (value == null) return "–";
    if (unit !== "s") return String(+value.toPrecision(3));
    return value < 1 ? `${+(value * 1000).toPrecision(3)} ms` : `${+value.toPrecision(3)} s`;
  };

  /* A step without a job is none a second, and no wait at all. */
  const series = (kind) => {
    const now = Math.floor(Date.now() / 1000 / step) * step;
    const newest = Math.max(now - step, last);
    const times = [];
    for (let at = newest - WINDOW; at <= newest; at += step) times.push(at);
    const lines = kinds[kind].lines.map(([name]) =>
      times.map((at) => points.get(at)?.[name] ?? (kind === "rate" ? 0 : null)),
    );
    return [times, ...lines];
  };

  const draw = () => {
    for (const chart of charts) chart.plot.destroy();
    charts = [...document.querySelectorAll("[data-chart]")].map((place) => {
      const kind = place.dataset.chart;
      const { lines, unit } = kinds[kind];
      const axis = { stroke: colour("faint"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") } };
      const plot = new uPlot(
        {
          width: place.clientWidth,
          height: 190,
          legend: { live: true },
          cursor: { drag: { x: false, y: false }, points: { show: false } },
          scales: { y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.1 : 1] } },
          axes: [
            { ...axis, values: (_plot, ticks) => ticks.map((at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })) },
            { ...axis, size: 62, values: (_plot, ticks) => ticks.map((value) => shown(value, unit)) },
          ],
          series: [
            { label: "at", value: (_plot, at) => (at == null ? "–" : new Date(at * 1000).toLocaleTimeString()) },
            ...lines.map(([name, tint]) => ({
              label: name.replace(/^.*_/, ""),
              stroke: colour(tint),
              width: 2,
              spanGaps: false,
              points: { show: kind !== "rate", size: 4, fill: colour(tint) },
              value: (_plot, value) => shown(value, unit),
            })),
          ],
        },
        series(kind),
        place,
      );
      return { kind, place, plot };
    });
  };

  const load = async () => {
    if (busy || document.hidden) return;
    busy = true;
    try {
      /* The last two steps are asked for again: they were not over. */
      const answer = await fetch(`/series?after=${Math.max(0, last - 2 * step)}`, { credentials: "same-origin" });
      if (!answer.ok) return;
      const found = await answer.json();
      step = found.step;
      for (const point of found.points) {
        points.set(point.at, point);
        last = Math.max(last, point.at);
      }
      for (const at of points.keys()) if (at < last - 2 * WINDOW) points.delete(at);
      for (const chart of charts) chart.plot.setData(series(chart.kind));
      for (const chart of charts) chart.place.dataset.points = String(points.size);
    } catch {
      /* The stream says that the server is away. */
    } finally {
      busy = false;
    }
  };

  draw();
  load();
  document.body.addEventListener("live", load);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let resizing = 0;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => {
      for (const chart of charts) chart.plot.setSize({ width: chart.place.clientWidth, height: 190 });
    }, 100);
  });
})();
