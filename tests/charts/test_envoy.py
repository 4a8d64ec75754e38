"""The chart's Envoy, started with its configuration in front of a gateway."""

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
import yaml

from tests.certificates import Authority
from tests.dns_server import dns_server
from tests.envoy import EXAMPLE, HOST, PICKER, Envoy, envoy, several
from tests.gateway_fixtures import raw_stream, running_gateway, script_request, text_of, wait_until
from tests.programs import TIMEOUT_S
from tools.chart import manifests, render
from trt_mtp.serve.triton import TritonServer


def rendered(kind: str, **values: Any) -> dict[str, Any]:
    """The object of this kind that is Envoy's own."""
    text = manifests(render({"envoy": {"enabled": True, **values}}, "demo", "models"))
    objects = [each for each in yaml.safe_load_all(text) if each]
    (found,) = (
        each
        for each in objects
        if each["kind"] == kind and each["metadata"]["name"] == "demo-envoy"
    )
    return dict(found)


@pytest.mark.parametrize("file", [EXAMPLE, PICKER])
def test_it_is_the_example_with_the_pods_name(file: Path) -> None:
    """Nothing else differs, so what is tried with the example holds for the chart."""
    config = yaml.safe_load(rendered("ConfigMap", picker=file == PICKER)["data"]["envoy.yaml"])
    example = file.read_text().replace(
        "address: gateways,", "address: demo-gateway-pods.models.svc,"
    )
    assert config == yaml.safe_load(example)


class MountedSecret:
    """A Secret as the kubelet mounts it: files are links through one folder, which is replaced."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        """Mount a certificate of `authority` in `folder`."""
        self._folder, self._authority, self._version = folder, authority, 0
        folder.mkdir()
        self.renew()
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(f"..data/{name}")

    def renew(self) -> None:
        """Another certificate."""
        self._version += 1
        version = self._folder / f"..{self._version}"
        version.mkdir()
        files = self._authority.issue(f"v{self._version}")
        for name, file in zip(("tls.crt", "tls.key"), files, strict=True):
            (version / name).write_bytes(file.read_bytes())
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        os.rename(link, self._folder / "..data")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who signs for Envoy."""
    return Authority(tmp_path / "ca")


@pytest.fixture
def secret(tmp_path: Path, authority: Authority) -> MountedSecret:
    """The Secret that envoy.tlsSecret names."""
    return MountedSecret(tmp_path / "tls", authority)


@pytest.fixture
def server(doubles: TritonServer, tmp_path: Path, secret: MountedSecret) -> Iterator[Envoy]:
    """Envoy with TLS before a gateway."""
    data = rendered("ConfigMap", tlsSecret="tls")["data"]
    here = {name: text.replace("/etc/trt-mtp", str(tmp_path)) for name, text in data.items()}
    (tmp_path / "envoy").mkdir()
    (tmp_path / "envoy" / "tls.yaml").write_text(here["tls.yaml"])
    (ports,) = several(1)
    with (
        running_gateway(doubles.grpc_url, port=ports.grpc, http_port=ports.http),
        envoy(tmp_path, [ports], here["envoy.yaml"]) as found,
    ):
        found.wait_healthy(ports)
        yield found


def test_clients_have_tls_and_a_renewed_certificate_is_used(
    server: Envoy, authority: Authority, secret: MountedSecret
) -> None:
    """On the gRPC port and the HTTP port, without a restart."""
    client = tritonclient.grpc.InferenceServerClient(
        server.grpc, ssl=True, root_certificates=str(authority.ca)
    )
    assert client.is_model_ready("qwen_mtp")
    client.close()
    ports = [int(each.rpartition(":")[2]) for each in (server.grpc, server.http)]
    before = {ssl.get_server_certificate((HOST, port)) for port in ports}
    assert len(before) == 1
    secret.renew()
    wait_until(lambda: not before & {ssl.get_server_certificate((HOST, port)) for port in ports})


def test_its_pod_ends_without_cutting_answers(doubles: TritonServer, tmp_path: Path) -> None:
    """The preStop command has it finish what it has and then take no more connections."""
    pod = rendered("Deployment", drainSeconds=7)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    (ports,) = several(1)
    with (
        running_gateway(doubles.grpc_url, port=ports.grpc, http_port=ports.http),
        envoy(tmp_path, [ports]) as server,
        raw_stream(server.grpc) as stream,
    ):
        stream.send(script_request(tokens=10**6, delay_s=0.05))
        assert text_of(stream.receive()) == "w0"
        here = command[-1].replace("/9901", f"/{server.admin_port}").replace("sleep 7", "sleep 0")
        subprocess.run([*command[:-1], here], check=True, timeout=TIMEOUT_S)
        wait_until(lambda: not server.is_open)
        stream.send(script_request(request_id="last", tokens=1))
        while stream.receive().infer_response.id != "last":
            pass


def test_gateways_come_and_go_with_the_addresses_of_their_name(
    doubles: TritonServer, tmp_path: Path
) -> None:
    """One that leaves gets nothing new, and finishes what it has."""
    config = rendered("ConfigMap")["data"]["envoy.yaml"]
    (ports,) = several(1)
    doors = {"port": ports.grpc, "http_port": ports.http}
    one, other = "127.0.0.2", "127.0.0.3"
    with (
        running_gateway(doubles.grpc_url, host=one, **doors) as leaves,
        running_gateway(doubles.grpc_url, host=other, **doors),
        dns_server(one) as dns,
        envoy(tmp_path, [ports], config, dns.port) as server,
        raw_stream(server.grpc) as stream,
    ):
        server.wait_healthy(ports, hosts=[one])
        stream.send(script_request(tokens=10**6, delay_s=0.05))
        assert text_of(stream.receive()) == "w0"
        dns.addresses = [one, other]
        server.wait_healthy(ports, hosts=[one, other])
        dns.addresses = [other]
        server.wait_healthy(ports, hosts=[other])
        for _ in range(20):
            with raw_stream(server.grpc) as new:
                new.send(script_request(tokens=1))
                assert text_of(new.receive()) == "w0"
        assert len(leaves.policy.seen) == 1
        stream.send(script_request(request_id="last", tokens=1))
        while stream.receive().infer_response.id != "last":
            pass
