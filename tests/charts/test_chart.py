"""The Helm chart, rendered by Helm itself with a dozen sets of values; no cluster."""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from tests.conftest import CliResult
from tools.chart import CHART, helm, manifests, render
from trt_mtp.cli import cli

VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule"}  # of KEDA and the Prometheus operator
ONE = {"variants": [{"name": "k0", "draftLength": 0}]}


def file(name: str) -> dict[str, Any]:
    """The values in a file of the chart."""
    values: dict[str, Any] = yaml.safe_load((CHART / name).read_text())
    return values


def defaults(**more: Any) -> dict[str, Any]:
    """Values that change those of every variant."""
    return {"variantDefaults": more}


SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "embedded": file("values-embedded.yaml"),
    "h100": file("values-h100.yaml"),
    "one variant": ONE,
    "six variants": {"variants": [{"name": f"k{k}", "draftLength": k} for k in (0, 1, 2, 3, 5, 7)]},
    "a variant of its own": {
        "variants": [
            {"name": "k3", "draftLength": 3, "replicas": 5, "drainSeconds": 120, "maxSurge": 0}
        ]
    },
    "a plan": {
        "variants": [
            {
                "name": "k3",
                "draftLength": 3,
                "draftLenSchedule": "4:3,16:1",
                "maxBatchSize": 16,
                "tensorParallel": 2,
                "keda": {"inFlightPerReplica": 14, "minReplicas": 1, "maxReplicas": 8},
                "resources": {"limits": {"nvidia.com/gpu": 2}},
            }
        ],
        "keda": {"enabled": True},
    },
    "tls": {"gateway": {"tlsSecret": "tls"}},
    "tokens": {"gateway": {"tokensSecret": "tenants", "profileConfigMap": "profile"}},
    "shared": {"shared": {"redis": {"url": "redis://redis.data:6379/0"}}},
    "shared, guarded": {
        "shared": {
            "redis": {"url": "rediss://gw@redis/1", "passwordSecret": "redis", "caSecret": "ca"}
        }
    },
    "envoy": {"envoy": {"enabled": True}},
    "envoy, guarded": {
        "envoy": {"enabled": True, "tlsSecret": "tls", "replicas": 3, "drainSeconds": 120},
        "networkPolicy": {"clients": [{"namespaceSelector": {}}]},
    },
    "picker": {"envoy": {"enabled": True, "picker": True}, "model": "other"},
    "many servers": {"gateway": {"subsetSize": 20, "replicas": 100, "args": ["--max-waiting=9"]}},
    "no network policy": {"networkPolicy": {"enabled": False}},
    "clients": {"networkPolicy": {"clients": [{"namespaceSelector": {}}]}},
    "gpu": defaults(shmSize="8Gi", modelClaim="models", runtimeClassName="nvidia"),
    "keda": {"keda": {"enabled": True, "minReplicas": 2, "maxReplicas": 9}},
    "monitoring": {"monitoring": {"podMonitor": True, "alerts": True, "dashboard": True}},
    "load balancer": {"gateway": {"service": {"type": "LoadBalancer", "annotations": {"a": "b"}}}},
    "large numbers": {
        "podSecurity": {"runAsUser": 1000680000, "fsGroup": 1000680000},  # as OpenShift has them
        "gateway": {"subsetSize": 1000000, "replicas": 1000000},
        "envoy": {"enabled": True, "drainSeconds": 1000000},
        "keda": {"enabled": True, "inFlightPerReplica": 2000000},
        **defaults(drainSeconds=1000000, startupSeconds=1000000),
    },
    "priority": {"priorityClassName": "high", "imagePullSecrets": [{"name": "registry"}]},
}


@cache
def objects(name: str) -> list[dict[str, Any]]:
    """What a set of values is rendered to."""
    text = manifests(render(SETS[name], name="demo", namespace="models"))
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def of_kind(name: str, *kinds: str) -> list[dict[str, Any]]:
    """The rendered objects of some kinds."""
    return [each for each in objects(name) if each["kind"] in kinds]


def pods(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The labels and the spec of each pod that a Deployment makes."""
    for each in of_kind(name, "Deployment"):
        template = each["spec"]["template"]
        yield template["metadata"]["labels"], template["spec"]


def containers(name: str) -> Iterator[dict[str, Any]]:
    """All containers of all pods, the test's among them."""
    specs = [spec for _, spec in pods(name)] + [each["spec"] for each in of_kind(name, "Pod")]
    for spec in specs:
        yield from spec.get("initContainers", ())
        yield from spec["containers"]


@cache
def distinct() -> list[dict[str, Any]]:
    """What all sets of values are rendered to, each object once; Kubernetes' own kinds alone."""
    texts = {json.dumps(each) for name in SETS for each in objects(name)}
    return [each for each in map(json.loads, sorted(texts)) if each["kind"] not in CUSTOM]


@pytest.fixture
def schemas_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator reads all definitions of a version for every object."""
    utils = kubernetes_validate.utils
    monkeypatch.setattr(utils, "schema_contents", cache(utils.schema_contents))


@pytest.mark.usefixtures("schemas_read_once")
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(version: str) -> None:
    """Validated strictly: a key that the schema doesn't know is an error."""
    for each in distinct():
        kubernetes_validate.validate(each, version, strict=True)


def test_the_validation_is_strict() -> None:
    """A misspelt probe would be found."""
    (deployment, *_) = (d for d in of_kind("defaults", "Deployment"))
    wrong = yaml.safe_load(yaml.safe_dump(deployment))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", SETS)
def test_selectors_select(name: str) -> None:
    """Each selects the pods that it is for, and every object has a name of its own."""
    names = [(each["kind"], each["metadata"]["name"]) for each in objects(name)]
    assert len(names) == len(set(names))
    found = list(pods(name))

    def num(selector: dict[str, str]) -> int:
        return sum(selector.items() <= labels.items() for labels, _ in found)

    components = [labels["app.kubernetes.io/component"] for labels, _ in found]
    variants = components.count("variant")
    expected = {"demo-variants": variants}
    for each in of_kind(name, "Service"):
        assert num(each["spec"]["selector"]) == expected.get(each["metadata"]["name"], 1)
    for each in of_kind(name, "Deployment", "PodDisruptionBudget", "PodMonitor"):
        assert num(each["spec"]["selector"]["matchLabels"]) == 1
    for each in of_kind(name, "NetworkPolicy"):
        selected = num(each["spec"]["podSelector"]["matchLabels"])
        assert selected == expected.get(each["metadata"]["name"], 1)
    deployments = {each["metadata"]["name"] for each in of_kind(name, "Deployment")}
    for each in of_kind(name, "ScaledObject"):
        assert each["spec"]["scaleTargetRef"]["name"] in deployments


def test_numbers_are_written_out() -> None:
    """Helm's numbers are floats, which print as 1e+06 from a million on if nothing is done."""
    text = manifests(render(SETS["large numbers"], name="demo", namespace="models"))
    assert not re.findall(r".*\de\+\d+.*", text)
    for _, spec in pods("large numbers"):
        assert spec["securityContext"]["runAsUser"] == 1000680000


def test_envoy_may_reach_gateways() -> None:
    """Where clients are named, too; it has the same clients."""
    policies = {
        each["metadata"]["name"]: each for each in of_kind("envoy, guarded", "NetworkPolicy")
    }
    (clients, envoy) = policies["demo-gateway"]["spec"]["ingress"][0]["from"]
    assert policies["demo-envoy"]["spec"]["ingress"][0]["from"] == [clients]
    (labels,) = (each for each, spec in pods("envoy, guarded") if is_envoy(spec))
    assert envoy["podSelector"]["matchLabels"].items() <= labels.items()


def test_envoy_alone_may_ask_the_picker_and_reach_servers() -> None:
    """And gateways reach servers as ever."""
    policies = {
        each["metadata"]["name"]: each["spec"] for each in of_kind("picker", "NetworkPolicy")
    }
    (labels,) = (each for each, spec in pods("picker") if is_envoy(spec))
    _, picker = policies["demo-gateway"]["ingress"]
    assert picker["ports"] == [{"port": "picker"}]
    (servers,) = policies["demo-variants"]["ingress"]
    for peer in (picker["from"][0], servers["from"][1]):
        assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert len(picker["from"]) == 1
    (config,) = (each for each in of_kind("picker", "ConfigMap"))
    assert "/v2/models/other/generate" in config["data"]["envoy.yaml"]


def is_envoy(spec: dict[str, Any]) -> bool:
    """Is it Envoy's pod?"""
    return bool(spec["containers"][0]["name"] == "envoy")


@pytest.mark.parametrize("name", SETS)
def test_answers_in_flight_have_their_time(name: str) -> None:
    """A pod is given longer than its pause and what the process takes to stop in order."""
    for labels, spec in pods(name):
        component = labels["app.kubernetes.io/component"]
        (container,) = spec["containers"]
        stop = {"gateway": 30, "variant": 10, "envoy": 0}[component]
        assert spec["terminationGracePeriodSeconds"] > pause_of(container) + stop


def pause_of(container: dict[str, Any]) -> int:
    """Seconds before it is told to stop."""
    action = container["lifecycle"]["preStop"]
    if "sleep" in action:
        return int(action["sleep"]["seconds"])
    return int(action["exec"]["command"][-1].rpartition("sleep ")[2])


@pytest.mark.parametrize("name", SETS)
def test_every_command_is_one_that_trt_mtp_takes(name: str) -> None:
    """Names and values of all options, as the commands themselves read them."""
    num = 0
    for container in containers(name):
        command = [*container["command"], *container["args"]]
        if command[0] == "trt-mtp":
            texts = [re.sub(r"\$\(\w+\)", "x", text) for text in command]
            found = cli.get_command(click.Context(cli), texts[1])
            assert found is not None
            found.make_context(texts[1], texts[2:])
            num += 1
    assert num >= 3


@pytest.mark.parametrize("name", SETS)
def test_pods_are_restricted(name: str) -> None:
    """As the Pod Security Standard `restricted` asks; nothing of the image can be written."""
    specs = [spec for _, spec in pods(name)] + [each["spec"] for each in of_kind(name, "Pod")]
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsGroup"] > 0  # 0, the default, owns files of images
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(name):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
    (role,) = of_kind(name, "Role")
    assert role["rules"] == [
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        }
    ]


@pytest.mark.parametrize("name", SETS)
def test_what_is_mounted_is_there(name: str) -> None:
    """Every mount has its volume, and no volume is for nothing."""
    for _, spec in pods(name):
        each = [*spec.get("initContainers", ()), *spec["containers"]]
        mounted = {mount["name"] for container in each for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_keda_alone_says_how_many_there_are() -> None:
    """A Deployment that it scales has no number of its own, which an upgrade would set again."""
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in of_kind("keda", "ScaledObject")}
    for each in of_kind("keda", "Deployment"):
        assert ("replicas" in each["spec"]) is (each["metadata"]["name"] not in scaled)
    for each in of_kind("keda", "ScaledObject"):
        assert (each["spec"]["minReplicaCount"], each["spec"]["maxReplicaCount"]) == (2, 9)
        (trigger,) = each["spec"]["triggers"]
        variant = each["metadata"]["name"].removeprefix("demo-")
        assert f'variant="{variant}",namespace="models"' in trigger["metadata"]["query"]


def test_a_variant_has_its_own_size() -> None:
    """Its batch, schedule and GPUs reach `trt-mtp build`; the rest is that of all variants."""
    (_, deployment) = of_kind("a plan", "Deployment")
    (build,) = deployment["spec"]["template"]["spec"]["initContainers"]
    assert {"--max-batch-size=16", "--draft-len-schedule=4:3,16:1", "--tp=2"} <= set(build["args"])
    assert build["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 2}
    (scaled,) = of_kind("a plan", "ScaledObject")
    assert scaled["spec"]["maxReplicaCount"] == 8
    assert scaled["spec"]["triggers"][0]["metadata"]["threshold"] == "14"


PLANS = {
    "one length": ("--gpus", "8"),
    "a mix": ("--gpus", "64", "--tpot-p99-ms", "12"),
    "two GPUs each": ("--gpus", "16", "--tp", "2"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_values(cli: Callable[..., CliResult], tmp_path: Path, name: str) -> None:
    """What `trt-mtp plan --format helm` prints is taken on top of the H100 fleet's values."""
    traffic = tmp_path / "traffic.json"
    rate = {"requests_per_s": 6, "prompt_tokens": 1500, "output_tokens": 400}
    traffic.write_text(json.dumps({"tasks": {"coding": rate, "writing": rate}}))
    call = ("plan", "qwen3.8-27b-fp8", "--traffic", traffic, "--gpu", "h100-80gb", *PLANS[name])
    planned = yaml.safe_load(cli(*call, "--format", "helm").out)
    rendered = manifests(render(file("values-h100.yaml") | planned, name="trt-mtp"))
    ours = {
        each["metadata"]["name"]: each["spec"]
        for each in yaml.safe_load_all(rendered)
        if each and each["kind"] == "ScaledObject"
    }
    for each in yaml.safe_load_all(cli(*call, "--format", "keda").out):
        rule, expected = ours[each["metadata"]["name"]], each["spec"]
        assert rule["minReplicaCount"] == expected["minReplicaCount"]
        assert rule["maxReplicaCount"] == expected["maxReplicaCount"]
        ((trigger,), (wanted,)) = (rule["triggers"], expected["triggers"])
        assert trigger["metadata"]["threshold"] == wanted["metadata"]["threshold"]
    assert len(ours) == len(planned["variants"])


def test_alerts_are_those_of_the_examples() -> None:
    """Prometheus' own placeholders come through Helm as they are."""
    (rule,) = of_kind("monitoring", "PrometheusRule")
    text = (CHART.parents[1] / "examples" / "monitoring" / "alerts.yml").read_text()
    assert rule["spec"] == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"replica": 1}, "replica"),
        ({"gateway": {"replicas": 0}}, "replicas"),
        ({"variants": []}, "variants"),
        ({"variants": [{"name": "K3", "draftLength": 3}]}, "name"),
        ({"variants": [{"name": "k3"}]}, "draftLength"),
        ({"variantDefaults": {"shmSize": "lots"}}, "shmSize"),
        ({"variantDefaults": {"draftLenSchedule": "4=3"}}, "draftLenSchedule"),
        ({"keda": {"prometheus": "prometheus:9090"}}, "prometheus"),
        ({"shared": {"redis": {"url": "redis:6379"}}}, "url"),
        ({"envoy": {"replicas": 0}}, "replicas"),
        ({"envoy": {"enabled": True}, "gateway": {"tlsSecret": "tls"}}, "move the Secret"),
        (
            {"envoy": {"enabled": True, "picker": True}, "gateway": {"tokensSecret": "tenants"}},
            "takes no tokens",
        ),
        ({"shared": {"redis": {"url": "redis://:password@redis"}}}, "url"),
    ],
)
def test_values_that_are_none_are_refused(values: dict[str, Any], key: str) -> None:
    """The schema's sentence has the key."""
    with pytest.raises(helm().HelmError, match=key):
        render(values)


def test_lint_has_nothing_to_say() -> None:
    """`helm lint --strict`, but for the icon."""
    report = helm().lint(CHART, file("values-embedded.yaml"), strict=True)
    assert [m for m in report["messages"] if m["severity"] > 1] == []
    assert report["errors"] == []


def test_compose_starts_commands_that_trt_mtp_takes() -> None:
    """compose.yaml has the same commands, for one machine."""
    services = yaml.safe_load((CHART.parents[1] / "compose.yaml").read_text())["services"]
    assert set(services) == {"redis", "triton", "gateway-1", "gateway-2"}
    for service in services.values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    shell = services["triton"]["command"][2].replace("exec ", "").split(" && ")
    commands = [text.split() for text in (*shell, services["gateway-1"]["command"])]
    for program, name, *options in commands:
        assert program == "trt-mtp"
        found = cli.get_command(click.Context(cli), name)
        assert found is not None
        found.make_context(name, options)
    assert [name for _, name, *_ in commands] == ["build", "serve", "gateway"]
