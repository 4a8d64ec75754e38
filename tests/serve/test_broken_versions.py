"""A version of a model that fails to load while its predecessor serves: no reason for a restart."""

import threading
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.gateway_fixtures import triton_of_doubles, wait_until
from trt_mtp.controller.rollout.triton import ADMIN_HEADER
from trt_mtp.serve.processes import children, is_alive
from trt_mtp.serve.triton import TritonServer

MODEL = "qwen_mtp_k3"
BROKEN = """
import os
import time

while not os.path.exists({file!r}):
    time.sleep(0.05)
raise RuntimeError("this version does not load")
"""


def load(server: TritonServer) -> None:
    """Have the server look at the model's versions."""
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    try:
        client.load_model(MODEL, headers={ADMIN_HEADER: server.admin_key}, client_timeout=60)
    finally:
        client.close()


def test_a_version_that_fails_slowly(tmp_path: Path) -> None:
    """Its process is the newest of the model, and its end is not the model's."""
    with triton_of_doubles(tmp_path / "triton") as server:
        pid, before = server.pid, set(children(server.pid))
        load(server)  # again, which the log tells and `check` finds only after what follows
        version, give_up = tmp_path / "triton" / "repository" / MODEL / "2", tmp_path / "give up"
        version.mkdir()
        (version / "model.py").write_text(BROKEN.format(file=str(give_up)))

        def load_broken() -> None:
            with pytest.raises(InferenceServerException, match="this version does not load"):
                load(server)

        loading = threading.Thread(target=load_broken)
        loading.start()
        wait_until(lambda: bool(set(children(server.pid)) - before))
        server.check()
        give_up.touch()
        loading.join(60)
        assert not loading.is_alive()
        for _ in range(3):
            server.check()
        assert server.pid == pid
        serving = server.pid_of(MODEL)
        assert serving is not None
        assert is_alive(serving)
