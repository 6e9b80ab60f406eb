"""The files that run pgqueue elsewhere: Kubernetes manifests, the KEDA scaler, systemd units, compose profiles."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import psycopg
import pytest
import yaml

from pgqueue import Settings, errors
from pgqueue.cli import main

ROOT = Path(__file__).parents[1]
MANIFESTS = list(yaml.safe_load_all((ROOT / "contrib/kubernetes/pgqueue.yaml").read_text("utf-8")))
KEDA = list(yaml.safe_load_all((ROOT / "contrib/kubernetes/keda.yaml").read_text("utf-8")))
NAMES = [f"{one['kind']} {one['metadata']['name']}" for one in MANIFESTS]


def pod_of(manifest):
    return manifest["spec"]["template"]["spec"]


PODS = [one for one in MANIFESTS if "template" in one["spec"]]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=NAMES)
def test_a_manifest_is_valid_by_kubernetes_own_schema(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_a_manifest_with_a_wrong_field_is_found():
    wrong = {**MANIFESTS[1], "spec": {**MANIFESTS[1]["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("manifest", PODS, ids=lambda one: one["metadata"]["name"])
def test_a_pod_runs_a_command_there_is_without_rights_and_with_limits(manifest):
    pod = pod_of(manifest)
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["containers"]:
        command, *flags = container["args"]
        assert command in main.commands
        known = {
            option
            for parameter in main.commands[command].params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert set(flags) <= known
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["cpu"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        settings = {one["name"].removeprefix("PGQUEUE_").lower() for one in container["env"]}
        assert settings <= set(Settings.model_fields)
        for probe in ("readinessProbe", "livenessProbe"):
            if probe in container:
                program, probed, *_ = container[probe]["exec"]["command"]
                assert (program, probed in main.commands) == ("pgqueue", True)


@pytest.mark.parametrize("name", ["pgqueue-dispatcher", "pgqueue-worker"])
def test_a_pod_is_not_killed_while_it_drains(name):
    pod = pod_of(next(one for one in PODS if one["metadata"]["name"] == name))
    values = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    drain = float(values.get("PGQUEUE_SHUTDOWN_TIMEOUT") or Settings.model_fields["shutdown_timeout"].default)
    assert pod["terminationGracePeriodSeconds"] > drain + 10


def test_a_worker_s_workspaces_are_where_it_may_write():
    pod = pod_of(next(one for one in PODS if one["metadata"]["name"] == "pgqueue-worker"))
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    root = next(one["value"] for one in container["env"] if one["name"] == "PGQUEUE_WORKSPACE_ROOT")
    mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"] if not one.get("readOnly")}
    assert mounted[root] in {one["name"] for one in pod["volumes"]}
    assert root not in (ROOT / "Dockerfile").read_text("utf-8"), "a mount hides nothing that the image has"


def test_each_budget_chooses_the_pods_of_a_deployment():
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in MANIFESTS if one["kind"] == "Deployment"]
    budgets = [one["spec"]["selector"]["matchLabels"] for one in MANIFESTS if one["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == len(pods) == 2
    assert all(any(wanted.items() <= labels.items() for labels in pods) for wanted in budgets)


def test_the_scaler_is_shaped_as_keda_wants_it_and_its_query_answers(dsn, queue):
    authentication, scaled = KEDA
    assert (authentication["kind"], scaled["kind"]) == ("TriggerAuthentication", "ScaledObject")
    assert {one["apiVersion"] for one in KEDA} == {"keda.sh/v1alpha1"}
    assert scaled["spec"]["scaleTargetRef"]["name"] in {one["metadata"]["name"] for one in MANIFESTS}
    assert 0 <= scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"]
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert trigger["metricType"] in {"AverageValue", "Value"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA's metadata are strings"
    with psycopg.connect(dsn) as connection:
        query = trigger["metadata"]["query"].encode()
        assert connection.execute(query).fetchone() == (0.0,)
        queue.enqueue("a")
        connection.rollback()
        (age,) = connection.execute(query).fetchone()
        assert age > 0


def test_the_worker_unit_fits_the_worker():
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.read(ROOT / "contrib/pgqueue-worker@.service", encoding="utf-8")
    service = unit["Service"]
    program, command = service["ExecStart"].split()
    assert (program, command in main.commands) == ("/opt/pgqueue/bin/pgqueue", True)
    assert service["Restart"] == "on-failure", "one that was drained stays ended: its exit code is 0"
    assert "Documentation" not in unit["Unit"]
    assert float(service["TimeoutStopSec"]) > Settings.model_fields["shutdown_timeout"].default
    hopeless = {errors.ConfigurationError.exit_code, errors.SchemaError.exit_code}
    assert set(map(int, service["RestartPreventExitStatus"].split())) == hopeless


def test_compose_runs_workers_in_the_fleet_profile_alone():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    assert services["worker"]["profiles"] == ["fleet"]
    assert services["worker"]["command"][0] in main.commands
    assert (services["dispatcher"]["deploy"]["replicas"], services["worker"]["deploy"]["replicas"]) == (2, 3)


def test_compose_s_web_is_on_loopback_and_gets_its_token_and_names_from_the_environment(monkeypatch):
    web = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]["web"]
    assert web["ports"] == ["127.0.0.1:${PGQUEUE_WEB_PUBLISHED_PORT:-8001}:8080"]
    assert web["restart"] == "unless-stopped"
    assert web["command"][0] in main.commands
    environment = web["environment"]
    assert (environment["PGQUEUE_WEB_HOST"], environment["PGQUEUE_WEB_PORT"]) == ("0.0.0.0", "8080")
    assert environment["PGQUEUE_API_TOKEN"] == "${PGQUEUE_API_TOKEN:-}"
    assert environment["PGHOST"] == "postgres"
    name, default = re.fullmatch(r"\$\{(\w+):-(.*)\}", environment["PGQUEUE_API_ALLOWED_HOSTS"]).groups()
    monkeypatch.setenv(name, default)
    assert Settings().api_allowed_hosts == []


DOCKER = """#!/bin/sh
echo "$@ token=${PGQUEUE_API_TOKEN:-}" >>"$0.log"
case "$1 $2" in
"compose ps") [ ! -e "$0.up" ] || echo container ;;
"compose up") touch "$0.up" ;;
"compose rm") rm "$0.up" ;;
"inspect --format") echo healthy ;;
*) echo 1 ;;
esac
"""


def test_the_web_script_starts_reports_and_stops_and_makes_its_token_once(tmp_path):
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    token = tmp_path / "kept" / "token"
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "PGQUEUE_WEB_TOKEN_FILE": str(token), "PGQUEUE_WEB_PUBLISHED_PORT": "8123",
    }  # fmt: skip

    def script(verb):
        return subprocess.run(
            ["sh", ROOT / "scripts/web", verb], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    assert script("status").returncode == 1
    assert not token.exists()
    for _ in range(2):
        assert script("start").stdout == "http://127.0.0.1:8123\n"
    made = token.read_text().strip()
    assert re.fullmatch("pgq_[0-9a-f]{64}", made), "256 bits"
    assert token.stat().st_mode & 0o077 == 0
    told = script("status")
    assert (told.returncode, told.stdout) == (0, "http://127.0.0.1:8123\n")
    assert made not in told.stderr
    assert script("stop").returncode == 0
    assert script("status").returncode == 1
    assert script("nonsense").returncode == 2
    log = (tmp_path / "docker.log").read_text()
    assert log.count(f"compose up -d web token={made}") == 2
