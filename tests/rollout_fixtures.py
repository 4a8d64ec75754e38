"""A place to roll out in: real Triton with doubles of variants, a gateway, live requests."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.programs import join, read_line
from tests.triton_client import streaming, text_of
from tests.variants import make_variant
from trt_mtp.build.variant import EngineVariant, write_variant
from trt_mtp.serve import repository
from trt_mtp.serve.grpc_access import GrpcAccess
from trt_mtp.serve.serving import admin_key_in
from trt_mtp.serve.triton import TritonServer
from trt_mtp.serve.triton_install import find_triton

DOUBLE = Path(__file__).parent / "doubles" / "rollout_model.py"
FAST_GATES = {"window_s": 0.25, "min_requests": 3, "probe_timeout_s": 2.0, "failure_limit": 2}
FAST_STEPS = [{"set_weight": 50, "at_least_s": 0, "at_most_s": 60}]


def use_doubles() -> None:
    """From now on every model that this process writes into a repository is a double."""
    repository.MODEL_PY = DOUBLE.read_text(encoding="utf-8")


def make_double(engines: Path, draft_length: int, **manners: Any) -> EngineVariant:
    """A variant in `engines` that a double serves, see doubles/rollout_model.py."""
    variant = make_variant(engines, draft_length, fingerprint="")
    (variant.folder / "double.json").write_text(json.dumps(manners))
    return write_variant(variant.folder, replace(variant.record, details=manners))


@dataclass(slots=True)
class Seen:
    """What became of the live requests."""

    answers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Place:
    """Servers, a gateway and folders; `spec` writes the rollout's file."""

    folder: Path
    tritons: tuple[TritonServer, ...]
    gateway: str  # host:port

    @property
    def triton(self) -> TritonServer:
        """The first server, which is the canary's."""
        return self.tritons[0]

    @property
    def state(self) -> Path:
        """The rollouts' state."""
        return self.folder / "rollout.db"

    def spec(
        self,
        variant: Path,
        replaces: str,
        name: str = "k3",
        metrics: str | None = None,
        **how: Any,
    ) -> Path:
        """A rollout of `variant` in place of `replaces`, quick steps unless `how` says other."""
        how = {"steps": FAST_STEPS, "gates": FAST_GATES, **how}
        value = {
            "schema_version": 1,
            "name": name,
            "what": {"variant": str(variant), "replaces": replaces},
            "where": {
                "state": "rollout.db",
                "gateways": [{"traffic": "traffic.json", "decision_log": "decisions.jsonl"}],
                "servers": [
                    {
                        "grpc": triton.grpc_url,
                        "admin_key_file": "admin.key",
                        "repository": _repository(number),
                        "metrics": metrics,
                    }
                    for number, triton in enumerate(self.tritons)
                ],
            },
            "how": how,
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(value))
        return file

    def traffic(self) -> dict[str, Any]:
        """The traffic file."""
        value: dict[str, Any] = json.loads((self.folder / "traffic.json").read_text())
        return value


def _repository(number: int) -> str:
    """The folder of a server's repository."""
    return "repository" if number == 0 else f"repository{number}"


@contextmanager
def place(folder: Path, variants: list[EngineVariant], num_servers: int = 1) -> Iterator[Place]:
    """Triton servers with doubles of `variants`, and a gateway process in front of them."""
    access = GrpcAccess(admin_key=admin_key_in(folder / "admin.key"))
    with ExitStack() as stack:
        stack.callback(setattr, repository, "MODEL_PY", repository.MODEL_PY)
        use_doubles()
        servers = []
        for number in range(num_servers):
            models_folder, run = folder / _repository(number), folder / f"run{number}"
            models_folder.mkdir(parents=True)
            run.mkdir()
            models = repository.render_repository(variants, models_folder)
            server = TritonServer(find_triton(), models_folder, models, run, access=access)
            server.start()
            stack.callback(server.stop)
            servers.append(server)
        address = stack.enter_context(gateway(folder, *(server.grpc_url for server in servers)))
        yield Place(folder, tuple(servers), address)


@contextmanager
def gateway(folder: Path, *tritons: str) -> Iterator[str]:
    """`trt-mtp gateway` in a process of its own, as rollouts need it; its address."""
    command = [sys.executable, "-m", "trt_mtp", "gateway", "--port", "0"]
    command += [part for triton in tritons for part in ("--triton", triton)]
    command += ["--traffic", str(folder / "traffic.json"), "--json"]
    command += ["--decision-log", str(folder / "decisions.jsonl")]
    with (folder / "gateway.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        yield json.loads(read_line(process))["gateway"]
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def live_requests(
    address: str,
    num_clients: int = 4,
    pause_s: float = 0.05,
    temperature: float = 0.7,
    tokens: int = 4,
    draft_length: int | str = "auto",
) -> Iterator[Seen]:
    """Clients that ask one request after the other, each of its own conversation."""
    seen, ended = Seen(), threading.Event()

    def ask(client: int) -> None:
        with streaming(address) as stream:
            number = 0
            while not ended.is_set():
                number += 1
                answer = stream.ask(
                    "qwen_mtp",
                    text_input=json.dumps({"tokens": tokens}),
                    streaming=True,
                    sampling_param_temperature=temperature,
                    parameters={
                        "session_id": f"{client}-{number}",
                        "draft_length": draft_length,
                    },
                )
                failed = [response.error for response in answer if response.error]
                seen.errors.extend(failed)
                if not failed:
                    seen.answers.append(text_of(answer))
                time.sleep(pause_s)

    def run(client: int) -> None:
        with suppress(queue.Empty):  # counted by who waits for it
            ask(client)
            return
        seen.errors.append("a request was never answered")

    threads = [threading.Thread(target=run, args=(client,)) for client in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            join(thread)
