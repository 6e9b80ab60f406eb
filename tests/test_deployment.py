"""The files that run pgqueue elsewhere: Kubernetes manifests, the KEDA scaler, systemd units, compose profiles."""

from __future__ import annotations

import configparser
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
    assert float(service["TimeoutStopSec"]) > Settings.model_fields["shutdown_timeout"].default
    hopeless = {errors.ConfigurationError.exit_code, errors.SchemaError.exit_code}
    assert set(map(int, service["RestartPreventExitStatus"].split())) == hopeless


def test_compose_runs_workers_in_the_fleet_profile_alone():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    assert services["worker"]["profiles"] == ["fleet"]
    assert services["worker"]["command"][0] in main.commands
    assert (services["dispatcher"]["deploy"]["replicas"], services["worker"]["deploy"]["replicas"]) == (2, 3)
