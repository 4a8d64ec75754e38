"""trt-mtp: build, serve and route Qwen MTP engine variants on TensorRT-LLM and Triton."""

import os

__version__ = "0.1.0"

# gRPC reads it once, when it is imported. Its fork handlers, on by default, crash the children of a
# process that is a client at the time (about one in five, with gRPC 1.83).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Set for protobuf before 4, whose "cpp" is gone; another value than these fails every import of it.
if os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION") not in ("python", "upb"):
    os.environ.pop("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", None)
