"""What KEDA asks Prometheus, computed by Prometheus' own promtool from what gateways export."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import TIMEOUT_S, program
from tools.chart import manifests, render

VARIANTS = [{"name": "k0", "draftLength": 0}, {"name": "k3", "draftLength": 3}]
IN_FLIGHT = "trt_mtp_gateway_requests_in_flight"
WAITING = "trt_mtp_gateway_requests_waiting"
HERE = 'namespace="models"'


def queries() -> dict[str, str]:
    """The query of each variant, by the name of what it scales."""
    values = {"variants": VARIANTS, "keda": {"enabled": True}}
    rendered = yaml.safe_load_all(manifests(render(values, name="demo", namespace="models")))
    return {
        each["metadata"]["name"]: each["spec"]["triggers"][0]["metadata"]["query"]
        for each in rendered
        if each and each["kind"] == "ScaledObject"
    }


def series(name: str, value: int, labels: str) -> dict[str, str]:
    """One sample of one series."""
    return {"series": f"{name}{{{labels}}}", "values": f"{value}"}


CASES = {
    "no gateway yet": ([], 0),
    "one gateway": ([series(IN_FLIGHT, 5, f'variant="k3",{HERE},pod="a"')], 5),
    "two gateways, and some wait": (
        [
            series(IN_FLIGHT, 5, f'variant="k3",{HERE},pod="a"'),
            series(IN_FLIGHT, 7, f'variant="k3",{HERE},pod="b"'),
            series(WAITING, 6, f'{HERE},pod="a"'),
            series(WAITING, 4, f'{HERE},pod="b"'),
        ],
        17,
    ),
    "all wait": ([series(WAITING, 8, f'{HERE},pod="a"')], 4),
    "others": (
        [
            series(IN_FLIGHT, 3, f'variant="k3",{HERE},pod="a"'),
            series(IN_FLIGHT, 50, f'variant="k0",{HERE},pod="a"'),
            series(IN_FLIGHT, 50, 'variant="k3",namespace="else",pod="c"'),
            series(WAITING, 50, 'namespace="else",pod="c"'),
        ],
        3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_query_counts_what_a_length_has_to_do(name: str, tmp_path: Path) -> None:
    """Its requests in flight on all gateways of the release, and its part of those that wait."""
    found, expected = CASES[name]
    case: dict[str, Any] = {
        "interval": "1m",
        "input_series": found,
        "promql_expr_test": [
            {
                "expr": queries()["demo-k3"],
                "eval_time": "0m",
                "exp_samples": [{"labels": "{}", "value": expected}],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [case]}))
    command = [program("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
