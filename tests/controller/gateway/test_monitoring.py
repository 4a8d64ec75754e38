"""The examples of monitoring, in a real Prometheus that scrapes a running gateway."""

import http.client
import json
import re
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gateway_fixtures import (
    raw_stream,
    running_gateway,
    script_request,
    wait_until,
)
from tests.programs import TIMEOUT_S, program
from trt_mtp.controller.gateway.shared.metrics import SharedMetrics
from trt_mtp.controller.policy import Policy
from trt_mtp.serve.processes import free_ports
from trt_mtp.serve.triton import TritonServer

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "monitoring"
PREFIX = "trt_mtp_gateway_"
# what Grafana puts into an expression
VARIABLES = {"$instance": ".*", "$task": ".*", "[$__rate_interval]": "[1m]"}


def promtool(*arguments: str) -> str:
    """What promtool says of the examples; fails when it finds something wrong."""
    run = subprocess.run(
        [program("promtool"), *arguments],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def alerts() -> list[dict[str, Any]]:
    """The rules."""
    groups = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    """What the dashboard asks Prometheus, with Grafana's variables filled in."""
    dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def test_configuration_and_rules_are_valid() -> None:
    """promtool takes the configuration and the rules it names."""
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_when_it_should() -> None:
    """The rules' own tests pass, and each alert has one in which it fires."""
    tests = ("alerts_test.yml", "alerts_days_test.yml")
    promtool("test", "rules", *tests)
    tested = "".join((EXAMPLES / name).read_text() for name in tests)
    for rule in alerts():
        assert f'alertname="{rule["alert"]}"' in tested
        assert set(rule["annotations"]) == {"summary", "action"}
        assert f"| {rule['alert']} |" in (EXAMPLES / "README.md").read_text()


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A Prometheus with the example's configuration, scraping `target` often; its address."""
    config = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(EXAMPLES / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_ports({"prometheus": 0})["prometheus"]
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def ask(address: str, path: str, **parameters: str) -> Any:
    """The data of an answer of Prometheus' API; None while it starts."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        response = connection.getresponse()
        if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            return None
        answer = json.loads(response.read())
    except ConnectionRefusedError:
        return None
    finally:
        connection.close()
    assert answer["status"] == "success", answer
    return answer["data"]


@pytest.fixture(scope="module")
def scraped(doubles: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has scraped a gateway after some traffic; its address."""
    folder = tmp_path_factory.mktemp("prometheus")
    with running_gateway(doubles.grpc_url, Policy(), http_port=0) as thread:
        shared = SharedMetrics(thread.gateway.metrics.registry)  # as with --shared
        shared.reached(time.time(), is_reachable=True)
        with raw_stream(thread.gateway.address) as stream:
            for _ in range(3):
                stream.send(script_request(tokens=4, parameters={"task": "coding"}))
                for _ in range(4):
                    stream.receive()
        assert thread.gateway.http_address is not None
        with prometheus(folder, thread.gateway.http_address) as address:
            rate = f"rate({PREFIX}requests_total[1m])"  # two scrapes, at least
            wait_until(lambda: bool((ask(address, "query", query=rate) or {}).get("result")), 60)
            yield address


def test_every_metric_that_is_named_exists(scraped: str) -> None:
    """Dashboard and alerts name only series that Prometheus got from the gateway."""
    known = set(ask(scraped, "label/__name__/values"))
    expressions = [*dashboard_expressions(), *(rule["expr"] for rule in alerts())]
    named = {name for one in expressions for name in re.findall(rf"\b{PREFIX}\w+", one)}
    assert len(named) > 15
    assert named <= known


def test_every_plot_of_the_dashboard_shows_something(scraped: str) -> None:
    """Each expression of the dashboard has a result after a little traffic."""
    for expression in dashboard_expressions():
        assert ask(scraped, "query", query=expression)["result"], expression


def test_a_healthy_gateway_raises_no_alarm(scraped: str) -> None:
    """Prometheus evaluates all rules without an error, and none but those on times sees a cause."""
    wait_until(
        lambda: all(
            rule["health"] == "ok"
            for group in ask(scraped, "rules")["groups"]
            for rule in group["rules"]
        )
    )
    seen = {alert["labels"]["alertname"] for alert in ask(scraped, "alerts")["alerts"]}
    assert seen <= {"TimeToFirstToken", "TimePerToken", "DecisionTime"}  # the machine's load
