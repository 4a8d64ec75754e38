"""trt-mtp: build, serve and route Qwen MTP engine variants on TensorRT-LLM and Triton."""

__version__ = "0.1.0"
