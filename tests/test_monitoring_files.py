"""The Grafana dashboard, the alert rules and the table of the docs name metrics and labels that there are."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from string import Template

import promql_parser
import pytest
import yaml
from support import eventually

from pgqueue import Registry, Settings
from pgqueue.metrics.endpoint import Metrics
from pgqueue.web.gate import Hosts, is_loopback

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "contrib/grafana/pgqueue.json").read_text("utf-8"))
RULES = ROOT / "contrib/prometheus/pgqueue.rules.yml"
ALERTS = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
OF_PROMETHEUS = {"job", "instance", "le"}
DURATION = re.compile(r"\d+[smhd]")
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture
def metrics(dsn, started, queue):
    """The names of all samples that a process tells which dispatches, executes and has a pool, each with its labels."""
    registry = Registry()
    registry.register("limited", lambda _job, _context: None, max_concurrency=1)
    dispatcher = started(registry)
    queue.enqueue("limited", delay=3600)
    eventually(lambda: dispatcher.is_leader and dispatcher.readiness().ready)
    found: dict[str, set[str]] = {}
    settings = Settings(database_url=dsn)
    with contextlib.closing(Metrics(settings, dispatcher, pool=queue.pool_use)) as made:
        # What has not happened yet has no samples; its labels stand in the counters themselves.
        labels = {one._name: set(one._labelnames) for one in made.registry._collector_to_names if hasattr(one, "_name")}
        for family in made.registry.collect():
            said = set().union(*(sample.labels for sample in family.samples)) | labels.get(family.name, set())
            for suffix in SUFFIXES[family.type]:
                found[family.name + suffix] = said | OF_PROMETHEUS
    return found


def selectors(expression):
    """Every selector of a parsed expression, and the labels that aggregations and matchings name."""
    selectors, labels = [], set()
    left = [expression]
    while left:
        one = left.pop()
        if isinstance(one, promql_parser.VectorSelector):
            selectors.append((one.name, {matcher.name for matcher in one.matchers.matchers}))
        modifier = getattr(one, "modifier", None)
        for holder in (modifier, getattr(modifier, "matching", None)):
            labels |= set(getattr(holder, "labels", None) or ())
        for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
            left += [below] if (below := getattr(one, name, None)) is not None else []
        left += getattr(one, "args", None) or []
    return selectors, labels


def check(text, metrics):
    """The expression can be parsed, and names what there is."""
    found, grouped = selectors(promql_parser.parse(text))
    assert found, text
    known = set().union(*(metrics.get(name, set()) for name, _ in found))
    for name, matched in found:
        assert name in metrics, f"{text}: there is no {name}"
        assert matched <= metrics[name], f"{text}: {name} has no such label"
    assert grouped <= known, f"{text}: no such label"
    return {name for name, _ in found}, grouped


def test_the_settings_beside_the_rules_example_targets_let_a_prometheus_elsewhere_ask_them():
    head = RULES.read_text("utf-8").partition("groups:")[0]
    said = dict(re.findall(r"PGQUEUE_(\w+)=([\w.]+)", head))
    settings = Settings(
        web_host=said["WEB_HOST"], metrics_port=int(said["METRICS_PORT"]), api_allowed_hosts=[said["API_ALLOWED_HOSTS"]]
    )
    targets = [target.rpartition(":") for target in re.findall(r"\"([\w-]+:\d+)\"", head)]
    assert {int(port) for _, _, port in targets} == {settings.metrics_port, settings.web_port}
    assert not is_loopback(settings.web_host)
    names = {host for host, _, port in targets if int(port) == settings.web_port}
    assert all(Hosts(settings.web_host, settings.api_allowed_hosts).knows(name) for name in names)
    assert not any(Hosts(settings.web_host, []).knows(name) for name in names), "which is why they are named"


def test_the_dashboard_asks_for_metrics_that_there_are_and_shows_all_the_counters(metrics):
    asked = set()
    for panel in DASHBOARD["panels"]:
        assert {"id", "type", "title", "gridPos"} <= panel.keys()
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"timeseries", "stat"}
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            text = Template(target["expr"]).substitute(job="pgqueue", __rate_interval="1m")
            names, _ = check(text, metrics)
            asked |= names
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= set().union(*(metrics[name] for name in names))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    cells = [(x + n, y + m) for h, w, x, y in places for n in range(w) for m in range(h)]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24
    assert {name for name in metrics if name.endswith("_total")} <= asked


def test_alert_rules_are_whole_and_ask_for_metrics_that_there_are(metrics):
    names = []
    for group in ALERTS:
        assert group.keys() <= {"name", "rules", "interval"}
        for rule in group["rules"]:
            names.append(rule["alert"])
            assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
            assert re.fullmatch(r"Pgqueue[A-Za-z]+", rule["alert"])
            assert "for" not in rule or DURATION.fullmatch(rule["for"])
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert rule["annotations"].keys() == {"summary", "description"}
            _, grouped = check(rule["expr"], metrics)
            for text in rule["annotations"].values():
                used = re.findall(r"\{\{ (.*?) \}\}", text)
                assert text.count("{{") == len(used)
                for one in used:
                    label = re.fullmatch(r"\$labels\.(\w+)", one)
                    assert label is None or label[1] in grouped
                    assert label or re.fullmatch(r"\$value( \| humanize(Duration|Percentage)?)?", one)
    assert len(names) == len(set(names)) > 10
    if promtool := shutil.which("promtool"):
        subprocess.run([promtool, "check", "rules", RULES], check=True, timeout=60)


def test_what_there_is_not_is_found_and_the_docs_name_every_metric_and_no_other(metrics):
    for text, wrong in (
        ("rate(pgqueue_jobs_complete_total[5m])", "there is no pgqueue_jobs_complete_total"),
        ('pgqueue_jobs{queue="a"}', "has no such label"),
        ("sum by (reasons) (pgqueue_jobs_failed_total)", "no such label"),
    ):
        with pytest.raises(AssertionError, match=wrong):
            check(text, metrics)
    told = set(re.findall(r"`(pgqueue_[a-z_]+)", (ROOT / "docs/metrics.md").read_text("utf-8")))
    assert told == {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics}
