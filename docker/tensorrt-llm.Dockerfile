# Triton with TensorRT-LLM, in NVIDIA's container of the version that docs/nvidia.md chooses.
#   docker build -f docker/tensorrt-llm.Dockerfile -t trt-mtp-tensorrt-llm:0.1.0 .
FROM nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc27
WORKDIR /src
COPY . .
# into NVIDIA's own Python, whose TensorRT-LLM and torch stay as they are; tritonserver comes with it
RUN pip install --no-cache-dir '.[triton]' && rm -rf /src
WORKDIR /
ENV PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8001
ENTRYPOINT []
CMD ["trt-mtp", "serve", "--help"]
