# One image for every process of Penstock: router, worker (Ray and the sim engine included), operator, autoscaler, and a Redis server for a start.
# `make image` builds it. A base needs Python 3.11 to 3.14 with venv, and either redis-server or apt to install it.
# Package settings of the builder's machine come in as secrets (image/build.sh): they are never part of a layer.
ARG BASE=docker.io/library/python:3.13-slim-bookworm@sha256:01f42367a0a94ad4bc17111776fd66e3500c1d87c15bbd6055b7371d39c124fb

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY image/requirements.lock ./
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt \
    if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi && \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi && \
    python3 -m venv /opt/penstock && \
    /opt/penstock/bin/pip install -q --only-binary :all: --require-hashes -r requirements.lock
COPY . .
# What only builds is taken out again, and what is never run here: tests of libraries, Ray's Java half. pip compiles what it
# installs: with a read-only root nothing could be compiled later.
RUN /opt/penstock/bin/pip install -q --no-deps --no-index --no-build-isolation . && \
    /opt/penstock/bin/pip uninstall -q -y hatchling pathspec pluggy trove-classifiers setuptools pip && \
    cd /opt/penstock/lib/python3*/site-packages && rm -rf ray/jars && find . -type d -name tests -prune -exec rm -rf {} +

# For any processor of the architecture, so that no process need compile for half a minute at its start.
ENV NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=""
RUN PYTHONDONTWRITEBYTECODE=1 /opt/penstock/bin/python -m penstock_cli.machine_code /opt/penstock/machine-code

FROM ${BASE}
RUN command -v redis-server >/dev/null || \
    { apt-get update -q && apt-get install -q -y --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/* /var/log/*; }
# Ray and others ask for the user's name.
RUN echo 'penstock:x:65532:65532:Penstock:/tmp:/usr/sbin/nologin' >>/etc/passwd && echo 'penstock:x:65532:' >>/etc/group
COPY --from=build /opt/penstock /opt/penstock
LABEL org.opencontainers.image.title="Penstock" \
      org.opencontainers.image.description="LLM serving with separate prefill and decode pools: router, workers, operator, autoscaler" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/penstock/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES="" PENSTOCK_MACHINE_CODE=/opt/penstock/machine-code
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["penstock"]
