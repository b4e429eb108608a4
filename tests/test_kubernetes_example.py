"""The Kubernetes example: readable, and in step with the server that the tests start."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "examples" / "kubernetes"
STARTER = (Path(__file__).parents[1] / "benchmarks" / "triton_server.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    loaded = yaml.safe_load_all((FOLDER / "triton.yaml").read_text(encoding="utf-8"))
    return {item["kind"]: item for item in loaded}


@pytest.fixture(scope="module")
def container(objects: dict[str, Any]) -> dict[str, Any]:
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.fixture(scope="module")
def server_command() -> list[str]:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    return [str(word) for word in json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])]


def test_selectors_agree(objects: dict[str, Any]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels


def test_probes_ask_the_health_endpoints_at_a_port_that_is_there(container: dict[str, Any]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    asked = {
        probe: container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert {get["port"] for get in asked.values()} == {"http"}
    assert {probe: get["path"] for probe, get in asked.items()} == {
        "startupProbe": "/v2/health/ready",
        "readinessProbe": "/v2/health/ready",
        "livenessProbe": "/v2/health/live",
    }


def test_pods_wait_longer_than_their_server(objects: dict[str, Any], server_command: list[str]) -> None:
    (seconds,) = (word.partition("=")[2] for word in server_command if word.startswith("--exit-timeout"))
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    # The time before the signal counts as well.
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + 5


def test_server_is_started_as_in_the_tests(server_command: list[str]) -> None:
    strict = ["--disable-auto-complete-config", "--strict-readiness=true", "--exit-on-error=true"]
    for word in strict:
        assert word in server_command
        assert word in STARTER
