"""The pods of the embedded values, run as processes with the probes that the chart renders."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gateway_fixtures import wait_until
from tests.kubelet import Pod
from tests.kubernetes_api import NAMESPACE, KubernetesApi, kubernetes_api
from tests.programs import TIMEOUT_S, join
from tests.triton_client import streaming
from tools.chart import EMBEDDED, manifests, render

NUM_TOKENS = 400
QUICK = {  # all pods share this machine; tests elsewhere verify variants
    "buildArgs": ["--engine", "cpu", "--no-verify"],
    "serveArgs": ["--metrics-port=0"],
    "drainSeconds": 1,
}


def pod_spec(name: str) -> dict[str, Any]:
    """The pod of a Deployment of the embedded values."""
    values = yaml.safe_load(EMBEDDED.read_text())
    values["variantDefaults"] |= QUICK
    text = manifests(render(values, "demo", NAMESPACE))
    (found,) = (
        each["spec"]["template"]["spec"]
        for each in yaml.safe_load_all(text)
        if each and each["kind"] == "Deployment" and each["metadata"]["name"] == name
    )
    return dict(found)


class Cluster:
    """A namespace with the release `demo`: its pods, and the endpoints of its variants."""

    def __init__(self, folder: Path, api: KubernetesApi) -> None:
        self._folder, self._api = folder, api
        self.pods: list[Pod] = []

    def run(self, deployment: str) -> Pod:
        """Start a pod of it."""
        name = f"{deployment}-{len(self.pods)}"
        folder = self._folder / name
        folder.mkdir()
        (folder / "account").symlink_to(self._folder / "api")
        is_server = deployment != "demo-gateway"
        on_ready = partial(self._endpoint, name) if is_server else lambda is_ready: None
        pod = Pod(name, pod_spec(deployment), folder, on_ready)
        self.pods.append(pod)
        return pod

    def _endpoint(self, name: str, is_ready: bool) -> None:
        (pod,) = (each for each in self.pods if each.name == name)
        self._api.put(name, f"{pod.address}:{pod.ports['grpc']}", ready=is_ready)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One in which nothing runs yet; nothing of it is left."""
    (tmp_path / "api").mkdir()
    with kubernetes_api(tmp_path / "api", monkeypatch, "demo-variants") as api:
        found = Cluster(tmp_path, api)
        try:
            yield found
        finally:
            for pod in found.pods:
                pod.kill()


def test_pods_start_answer_and_end_as_the_chart_says(cluster: Cluster) -> None:
    """Gateways wait for a first server; an answer outlives SIGTERM; no pod is killed or cut.

    A gateway whose servers have left is not ready, and not killed for it either.
    """
    leaving, staying = cluster.run("demo-gateway"), cluster.run("demo-gateway")
    server = cluster.run("demo-k3")
    wait_until(lambda: all(pod.is_ready for pod in cluster.pods), TIMEOUT_S)
    with streaming(f"{leaving.address}:{leaving.ports['grpc']}") as stream:
        stream.send(
            "qwen_mtp", text_input="Ada", sampling_param_max_tokens=NUM_TOKENS, streaming=True
        )
        responses = [stream.receive()]
        ending = threading.Thread(target=leaving.end)
        ending.start()
        responses += stream.receive_all()
    join(ending)
    assert len(responses) > 2
    assert not responses[-1].error
    server.end()
    wait_until(lambda: not staying.is_ready, TIMEOUT_S)
    staying.end()
    for pod in cluster.pods:
        assert (pod.exit_code, pod.num_restarts, pod.was_cut) == (0, 0, False), pod.log
