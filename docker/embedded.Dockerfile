# Triton with the CPU engine and the small checkpoint, for a fleet that anyone can try.
#   docker build -f docker/embedded.Dockerfile -t trt-mtp-embedded:0.1.0 .
FROM python:3.11-slim AS build
WORKDIR /src
COPY . .
RUN sed -nE 's/^([A-Za-z0-9._-]+)(\[[^]]*\])?(==[^ ]+) .*/\1\3/p' requirements.lock > /constraints.txt \
    && python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint /constraints.txt '.[cpu]'

FROM python:3.11-slim
COPY --from=build /venv /venv
COPY assets /opt/trt-mtp/assets
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8001
ENTRYPOINT []
CMD ["trt-mtp", "serve", "--help"]
