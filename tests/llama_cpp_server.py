"""llama.cpp's own server (PyPI xllamacpp) on a checkpoint of ours, drafting with its MTP layer.

`python -m tests.llama_cpp_server [CHECKPOINT] [--draft-length K] [--port PORT]` writes the
checkpoint as GGUF to a temporary folder, prints a line of JSON with the address when clients can
come, and serves until a signal comes. It can be done with checkpoints that benchmarks/_llama_cpp.py
can write.
"""

import argparse
import json
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks._llama_cpp import write_gguf
from trt_mtp.controller.up import default_checkpoint

CONTEXT_TOKENS = 2_048
NUM_SLOTS = 4
MODEL = "llama-cpp"  # as clients call it


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description="Serve a checkpoint with llama.cpp.")
    parser.add_argument("checkpoint", nargs="?", type=Path, default=default_checkpoint())
    parser.add_argument("--draft-length", type=int, default=0, help="0: no speculation")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    options = parser.parse_args()
    is_over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        write_gguf(Path(options.checkpoint), file, "f32", with_mtp=True)
        server = started(file, options.draft_length, options.port)
        print(json.dumps({"url": f"{server.listening_address}/v1"}), flush=True)
        is_over.wait()


def started(file: Path, draft_length: int, port: int) -> Any:
    """A server that listens."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = CONTEXT_TOKENS * NUM_SLOTS
    parameters.n_parallel = NUM_SLOTS
    parameters.port = port
    parameters.model_alias = {MODEL}
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.endpoint_metrics = True
    parameters.verbosity = -1
    if draft_length:
        parameters.load_mtp = True
        kinds = xllamacpp.common_speculative_type
        parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
        parameters.speculative.draft.n_max = draft_length
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    main()
