"""`examples/kubernetes`: the manifests are ones that Kubernetes takes, and fit Glasspoint and each other.

There is no cluster here: the schemas of Kubernetes' own kinds come with kubernetes-validate. A ServiceMonitor
is a kind of the Prometheus operator, without a schema here, so it is held against the Service alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

import preforked
from command_line import environment, glasspoint
from glasspoint import Settings
from glasspoint.redis.location import Kind, locate
from glasspoint.telemetry.http import telemetry_app
from places import ROOT

FOLDER = ROOT / "examples" / "kubernetes"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")

MANIFESTS = [
    (path.name, document)
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text("utf-8"))
]
OPERATOR = "monitoring.coreos.com/v1"
SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}

# The secrets, and what their REDIS_URL leads to: one of these files is applied.
REDIS = {"secrets.yaml": "single", "secrets-sentinel.yaml": "sentinel", "secrets-cluster.yaml": "cluster"}

# An older release, and the newest one that there are schemas of.
RELEASES = ("1.29", kubernetes_validate.latest_version())


def of_kind(kind: str, file: str | None = None) -> list[dict[str, Any]]:
    return [each for name, each in MANIFESTS if each["kind"] == kind and file in (None, name)]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The specification of each pod, with the kind of what makes it."""
    for _, each in MANIFESTS:
        spec = each.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield each["kind"], spec["template"]["spec"]


def containers() -> Iterator[dict[str, Any]]:
    for _, spec in pods():
        yield from spec["containers"]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("file", "manifest"), MANIFESTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_kubernetes_takes_the_manifest(file: str, manifest: dict[str, Any], release: str) -> None:
    if manifest["apiVersion"] == OPERATOR:
        return
    kubernetes_validate.validate(manifest, release, strict=True)


def test_a_mistyped_field_would_be_noticed() -> None:
    [deployment] = of_kind("Deployment")
    mistyped = {**deployment, "spec": {**deployment["spec"], "replica": 3}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(mistyped, RELEASES[-1], strict=True)


@pytest.mark.parametrize(("file", "kind"), REDIS.items())
def test_every_variable_is_a_setting_and_every_secret_has_it(file: str, kind: str) -> None:
    secrets = {each["metadata"]["name"]: each["stringData"] for each in of_kind("Secret", file)}
    values, used = dict[str, Any](), set[str]()
    for container in containers():
        for variable in container["env"]:
            assert variable["name"] in SETTINGS
            if "value" in variable:
                values[variable["name"]] = variable["value"]
            else:
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["key"] == variable["name"]
                used.add(reference["key"])
                assert reference.get("optional") or reference["key"] in secrets[reference["name"]]
    assert secrets["chat-service"].keys() <= used
    settings = Settings(**values, **secrets["chat-service"])
    assert settings.pool_max_size == int(values["CHECKPOINT_POOL_MAX_SIZE"])
    assert settings.fallbacks == ("redis", "memory"), kind
    mentioned = set(re.findall(r"\b(?:CHECKPOINT|GLASSPOINT)_[A-Z0-9_]+", PAGE))
    assert mentioned <= SETTINGS


@pytest.mark.parametrize(("file", "kind"), REDIS.items())
def test_the_url_of_redis_leads_to_what_the_file_is_for(file: str, kind: str) -> None:
    service = next(each for each in of_kind("Secret", file) if each["metadata"]["name"] == "chat-service")
    url = service["stringData"]["REDIS_URL"]
    location = locate(url)
    assert location.kind == kind
    assert "://glasspoint_chain:" in url, "the service falls back on the tier redis: see docs/rights.md"
    if kind != "single":
        assert len(location.hosts) == 3
        assert {port for _, port in location.hosts} == {26379 if kind == "sentinel" else 6379}
        assert url.partition("://")[0] in PAGE
    if kind == "sentinel":
        assert (location.service, location.options["db"]) == ("mymaster", 0)


def test_there_is_a_file_of_secrets_for_each_kind_of_redis() -> None:
    assert {path.name for path in FOLDER.glob("secrets*.yaml")} == REDIS.keys()
    assert set(REDIS.values()) == set(get_args(Kind))


def test_only_the_job_that_makes_the_tables_has_their_owner() -> None:
    for kind, spec in pods():
        used = {
            each["valueFrom"]["secretKeyRef"]["name"]
            for each in spec["containers"][0]["env"]
            if "valueFrom" in each
        }
        assert used == {"chat-owner" if kind == "Job" else "chat-service"}


def test_the_commands_of_the_jobs_work(empty_database: str, redis_url: str) -> None:
    commands = [each["command"] for each in containers() if each["command"][0] == "glasspoint"]
    assert [command[1] for command in sorted(commands, reverse=True)] == ["setup", "prune"]
    for command in sorted(commands, reverse=True):
        ended = glasspoint(*command[1:], POSTGRES_URL=empty_database, REDIS_URL=redis_url)
        assert ended.returncode == 0, ended.stderr


def test_the_application_is_the_one_of_the_examples() -> None:
    [deployment] = of_kind("Deployment")
    command = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    module, _, app = command[-1].partition(":")
    program = f"import {module} as example; print(example.{app})"
    done = preforked.run(program, env=environment(), cwd=ROOT / "examples", timeout=60)
    assert done.returncode == 0, done.stderr


async def test_the_probes_and_the_scrape_ask_for_what_is_served() -> None:
    [container] = of_kind("Deployment")[0]["spec"]["template"]["spec"]["containers"]
    [endpoint] = of_kind("ServiceMonitor")[0]["spec"]["endpoints"]
    transport = httpx.ASGITransport(app=telemetry_app(CollectorRegistry()))
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
        for probe in ("startupProbe", "livenessProbe"):
            assert (await client.get(container[probe]["httpGet"]["path"])).status_code == 200
        ready = await client.get(container["readinessProbe"]["httpGet"]["path"])
        assert ready.json()["ready"] is False, "there is no saver here"
        assert (await client.get(endpoint["path"])).status_code == 200


def test_service_monitor_and_ports_fit_each_other() -> None:
    [deployment], [service], [monitor] = of_kind("Deployment"), of_kind("Service"), of_kind("ServiceMonitor")
    template = deployment["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert template["metadata"]["labels"].items() >= service["spec"]["selector"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert monitor["apiVersion"] == OPERATOR
    assert service["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    names = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
        p["name"] for p in service["spec"]["ports"]
    }
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in names
    # Other pods do not answer for the Service.
    for kind in ("Job", "CronJob"):
        [other] = of_kind(kind)
        assert other["metadata"]["labels"].items().isdisjoint(service["spec"]["selector"].items())


def test_alerts_watch_the_job_that_the_monitor_names_from_its_first_scrape_on() -> None:
    [endpoint] = of_kind("ServiceMonitor")[0]["spec"]["endpoints"]
    [relabeling] = endpoint["relabelings"]
    recorded = (ROOT / "dashboards" / "prometheus" / "recording.yml").read_text("utf-8")
    [jobs] = re.findall(r'up\{job=~"([^"]+)"\}', recorded)
    assert relabeling["targetLabel"] == "job"
    assert re.fullmatch(jobs, relabeling["replacement"])


def test_the_page_names_every_file() -> None:
    assert set(re.findall(r"examples/kubernetes/([\w-]+\.yaml)", PAGE)) == {name for name, _ in MANIFESTS}
