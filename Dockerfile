# syntax=docker/dockerfile:1
#
# Three images from one file:
#
#   docker build --target worker -t golem-tasks:cpu .
#   docker build --target worker -t golem-tasks:cuda --build-arg TORCH_INDEX_URL= .
#   docker build --target flower -t golem-tasks:flower .

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS base
ENV PATH=/opt/golem/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# A numeric user, so that Kubernetes can check that it isn't root.
RUN groupadd --gid 10001 golem \
    && useradd --uid 10001 --gid golem --no-create-home --home-dir /tmp --shell /usr/sbin/nologin golem \
    && python -m venv /opt/golem

FROM base AS build-worker
WORKDIR /src
# Which build of PyTorch: its CPU index by default, several GB smaller. Empty takes the package
# index's own build (CUDA on Linux); for another CUDA version name PyTorch's index of it.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
# PyTorch first and alone: the largest layer, and the one that changes least.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml README.md LICENSE ./
COPY golem_tasks golem_tasks
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ".[worker]"

FROM base AS build-flower
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY golem_tasks golem_tasks
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt . flower

FROM base AS flower
COPY --from=build-flower /opt/golem /opt/golem
WORKDIR /opt/golem
USER 10001:10001
EXPOSE 5555
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker", "flower", "--port=5555"]

FROM base AS worker
COPY --from=build-worker /opt/golem /opt/golem
# Hub models are kept here, and what workers learn of the memory; a new volume takes over the
# folder's owner.
RUN install --directory --owner=10001 --group=10001 /models
ENV HF_HOME=/models \
    GOLEM_STATE_DIR=/models/golem
VOLUME /models
WORKDIR /opt/golem
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=300s --retries=3 \
    CMD ["golem", "health", "--json"]
CMD ["golem", "worker"]
