# The gateway and rollouts, with the base dependencies and what --shared needs.
#   docker build -f docker/gateway.Dockerfile -t trt-mtp-gateway:0.1.0 .
FROM python:3.11-slim AS build
WORKDIR /src
COPY . .
# the versions of the lock file, of what is asked for
RUN sed -nE 's/^([A-Za-z0-9._-]+)(\[[^]]*\])?(==[^ ]+) .*/\1\3/p' requirements.lock > /constraints.txt \
    && python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint /constraints.txt '.[redis]'

FROM python:3.11-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8000 8001
ENTRYPOINT []
CMD ["trt-mtp", "gateway", "--help"]
