"""Claim: one uvicorn worker on one core, with a million measurements and ten thousand jobs under it, is quick.

Reads: p99 below 50 ms at 200 a second. Page 5,000 of a list as quick as the first, within a fifth. Submitting: p99 below 100 ms.
Two hundred event streams open at once, each told of its job's change.

    make bench-api                                                   # fills the tables, then measures: ten minutes
    python -m benchmarks.api --data-dir D --fill-only                # only the filling; the second call finds it done
    python -m benchmarks.api --data-dir D --report docs/benchmarks/api.md

The server has core 0, PostgreSQL and the load have the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Engine, text

from benchmarks.http_load import Connection, Request, Tally, ask, drive, http_request, median, percentile
from db.engine import make_engine, upgrade
from db.pages import write_page_token
from db.store import SqlJobStore
from domain.job import EndedBy, JobState, JobVerb
from domain.trial import TrialState, TrialValues
from tests.integration.db.samples import Seeds, built, measured, new_measurement
from workers.embedded import free_port
from workers.servers.folders import ServerFolders, prepare_folders
from workers.servers.postgres import start_postgres, stop_postgres
from workers.servers.valkey import start_valkey, stop_valkey

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "benchmark-admin"
JOBS, MEASUREMENTS_A_JOB, TRIALS_A_JOB = 10_000, 100, 25
AUDIT_ENTRIES = 300_000
STREAMS = 200
SPEC = {"model": {"name": "resnet20"}, "data": {"name": "mnist-5k"}, "targets": [{"speedup": 2.0}]}
# What people and programs ask of such a server: mostly one job, again and again; lists; a front now and then.
READS = {"job": 30, "job, unchanged": 20, "jobs": 15, "trials": 15, "front": 10, "devices": 5, "audit": 5}


@dataclass(frozen=True)
class Claim:
    """What was promised, and what came out."""

    what: str
    found: str
    wanted: str
    holds: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("/tmp/pruneloop-bench-api"))
    parser.add_argument("--fill-only", action="store_true")
    parser.add_argument("--seconds", type=float, default=60, help="of reading at 200 a second")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    options.data_dir.mkdir(parents=True, exist_ok=True)
    options.data_dir.chmod(0o755)
    folders = prepare_folders(options.data_dir)
    url = start_postgres(folders)
    try:
        upgrade(url)
        engine = make_engine(url)
        fill(engine, options.jobs)
        if not options.fill_only:
            with serving(url, start_valkey(folders), folders, options.data_dir) as (port, process):
                claims, tables = measure(engine, port, process, options.seconds)
            text_of = render(claims, tables, engine)
            print(text_of)
            if options.report:
                options.report.write_text(text_of)
            return 0 if all(claim.holds for claim in claims) else 1
        engine.dispose()
    finally:
        stop_valkey(folders)
        stop_postgres(folders)
    return 0


# --- the tables -----------------------------------------------------------------------------------------------------
def fill(engine: Engine, jobs: int) -> None:
    """Make one finished job through the store, then copies of its rows under other names, by SQL."""
    with engine.connect() as connection:
        if connection.execute(text("SELECT count(*) FROM job")).scalar_one() >= jobs:
            return
    began = time.monotonic()
    store = SqlJobStore(engine)
    store.set_token("benchmark", TOKEN, frozenset({"admin"}))
    job_id = finished_job(store)
    copies = {"n": jobs - 1, "job": job_id}
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL synchronous_commit = off"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        for table, ids in (
            ("job", ("id",)),
            ("build", ("id", "job_id")),
            ("measurement", ("id", "job_id")),
            ("trial", ("id", "job_id", "build_id", "measurement_id")),
            ("event", ("job_id",)),
        ):
            names = connection.execute(
                text(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = :t AND table_schema = 'public'"
                ),
                {"t": table},
            ).scalars()
            columns = list(names)
            told = [f"r.{name} || '_' || g" if name in ids else f"r.{name}" for name in columns]
            if table == "job":  # spread over half a year, newest last, in a few states
                told[columns.index("created_at")] = "r.created_at - make_interval(mins => 25 * g)"
                told[columns.index("labels")] = "jsonb_build_object('team', 'team' || g % 20)"
                told[columns.index("name")] = "'job ' || g"
            where = "r.id = :job" if table == "job" else "r.job_id = :job"
            copy = (
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(told)} "
                f"FROM generate_series(1, :n) g, {table} r WHERE {where} ORDER BY g"
            )
            connection.execute(text(copy), copies)
        connection.execute(
            text(
                "INSERT INTO audit (at, actor, action, subject, detail) SELECT now() - make_interval(secs => :a - g), "
                "'box', 'measurement.outcome', 'measurement_' || g, '{\"status\": \"measured\"}' FROM generate_series(1, :a) g"
            ),
            {"a": AUDIT_ENTRIES},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))  # what the filling left to be written is not the load's to wait for
    os.sync()
    print(f"filled in {time.monotonic() - began:.0f} s", flush=True)


def finished_job(store: SqlJobStore) -> str:
    """Return a job that ended with its trials and measurements done."""
    seeds = Seeds(store)
    job, lease = seeds.job("template")
    device = seeds.device()
    trials = [seeds.trial(lease, number) for number in range(TRIALS_A_JOB)]
    for _ in trials:
        build = store.claim_build("builder", lease_s=60)
        assert build is not None
        store.finish_build(build.id, build.attempt, built())
    for number in range(MEASUREMENTS_A_JOB):
        trial_id = trials[number].id if number < len(trials) else None
        store.add_measurement(lease, new_measurement(f"m{number}"), trial_id=trial_id)
        claim = store.claim_measurement(device.id, lease_s=60)
        assert claim is not None
        store.finish_measurement(claim.measurement_id, device.id, claim.attempt, measured(raw=None))
    for trial in trials:
        store.finish_trial(lease, trial.id, TrialState.SUCCEEDED, values=TrialValues(error=0.1, latency_ratio=0.5))
    store.merge_report(lease, {"best_speedup": {"0": 2.0}})  # as a search ends
    store.end_job(lease, JobState.SUCCEEDED, ended_by=EndedBy.BUDGET)
    return job.id


@contextmanager
def serving(
    database_url: str, broker_url: str, folders: ServerFolders, data_dir: Path
) -> Iterator[tuple[int, psutil.Process]]:
    """Run the API in a process of its own, on core 0; this process and PostgreSQL get the others."""
    port = free_port("127.0.0.1")
    environment = {
        **os.environ,
        "PRUNELOOP_DATABASE_URL": database_url,
        "PRUNELOOP_BROKER_URL": broker_url,
        "PRUNELOOP_ARTIFACT_DIR": str(data_dir / "artifacts"),
        "PRUNELOOP_PORT": str(port),
    }
    process = psutil.Popen([sys.executable, "-m", "api.main"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        cores = sorted(os.sched_getaffinity(0))
        process.cpu_affinity(cores[:1])
        os.sched_setaffinity(0, cores[1:] or cores)
        asyncio.run(_until_ready(port))
        yield port, process
    finally:
        process.terminate()
        process.wait(30)


async def _until_ready(port: int) -> None:
    for _ in range(600):
        try:
            connection = await Connection.open(port)
            status, _ = await connection.ask(http_request("GET", "/readyz", TOKEN))
            connection.close()
            if status == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("the server did not start")


# --- measuring ------------------------------------------------------------------------------------------------------
def measure(engine: Engine, port: int, process: psutil.Process, seconds: float) -> tuple[list[Claim], dict[str, Tally]]:
    """Run everything; return the claims and the tables behind them."""
    dice = random.Random(7)
    with engine.connect() as connection:
        ids = list(connection.execute(text("SELECT id FROM job WHERE state = 'SUCCEEDED'")).scalars())
    reads = _Reads(dice, ids, port)
    asyncio.run(drive(port, 100, 5, reads.next))  # warm: plans, pools, caches
    used = process.cpu_times()
    reading = asyncio.run(drive(port, 200, seconds, reads.next))
    busy = (sum(process.cpu_times()[:2]) - sum(used[:2])) / seconds
    pages = {name: asyncio.run(_pages(engine, port, name, size)) for name, size in (("jobs", 2), ("audit", 50))}
    submitting = asyncio.run(drive(port, 20, 20, lambda: ("submit", _submit(dice))))
    told_ms, streamed = asyncio.run(_streams(engine, port, reads))
    read_p99, with_p99 = percentile(reading.all_ms(), 0.99), percentile(streamed.all_ms(), 0.99)
    submit_p99 = percentile(submitting.all_ms(), 0.99)
    claims = [
        Claim(
            f"reads at 200 a second, {len(reading.all_ms())} of them, {busy:.0%} of the core",
            f"p50 {median(reading.all_ms()):.1f} ms, p99 {read_p99:.1f} ms, {len(reading.errors)} errors",
            "p99 < 50 ms",
            read_p99 < 50 and not reading.errors,
        ),
        *(
            Claim(
                f"{name}, page 5,000 against the first",
                f"{deep:.2f} ms against {first:.2f} ms: {deep / first - 1:+.0%}",
                "within 20 %",
                deep / first < 1.2,
            )
            for name, (first, deep) in pages.items()
        ),
        Claim(
            f"submitting at 20 a second, {len(submitting.all_ms())} jobs",
            f"p50 {median(submitting.all_ms()):.1f} ms, p99 {submit_p99:.1f} ms, {len(submitting.errors)} errors",
            "p99 < 100 ms",
            submit_p99 < 100 and not submitting.errors,
        ),
        Claim(
            f"{STREAMS} event streams at once",
            f"{len(told_ms)} told of their job's change, p99 after {percentile(told_ms, 0.99):.0f} ms; "
            f"reads meanwhile at 200 a second: p99 {with_p99:.1f} ms",
            f"{STREAMS} open, all told",
            len(told_ms) == STREAMS and not streamed.errors,
        ),
    ]
    return claims, {"alone": reading, f"with {STREAMS} streams open": streamed}


class _Reads:
    """The mix of reads; an unchanged job is asked for with the ETag it had."""

    def __init__(self, dice: random.Random, ids: list[str], port: int) -> None:
        self._dice = dice
        self._ids = ids
        self._known = {job_id: asyncio.run(_etag(port, job_id)) for job_id in dice.sample(ids, 50)}

    def next(self) -> Request:
        name = self._dice.choices(list(READS), list(READS.values()))[0]
        job_id = self._dice.choice(self._ids)
        headers = {}
        if name == "job, unchanged":
            job_id = self._dice.choice(list(self._known))
            headers = {"If-None-Match": self._known[job_id]}
        path = {
            "jobs": "/v1/jobs?page_size=20",
            "trials": f"/v1/jobs/{job_id}/trials?page_size=20",
            "front": f"/v1/jobs/{job_id}/front",
            "devices": "/v1/devices",
            "audit": "/v1/audit?page_size=20",
        }.get(name, f"/v1/jobs/{job_id}")
        return name, http_request("GET", path, TOKEN, headers=headers)


async def _etag(port: int, job_id: str) -> str:
    connection = await Connection.open(port)
    connection.writer.write(http_request("GET", f"/v1/jobs/{job_id}", TOKEN))
    head = (await connection.reader.readuntil(b"\r\n\r\n")).decode()
    connection.close()
    return next(line.partition(": ")[2] for line in head.split("\r\n") if line.lower().startswith("etag:"))


def _submit(dice: random.Random) -> bytes:
    body = json.dumps({**SPEC, "name": f"bench {dice.random()}"}).encode()
    return http_request("POST", "/v1/jobs", TOKEN, body, {"Idempotency-Key": str(dice.random())})


async def _pages(engine: Engine, port: int, name: str, size: int) -> tuple[float, float]:
    """Return the median milliseconds of the first page and of page 5,000, asked for in turns."""
    order = "created_at DESC, id DESC" if name == "jobs" else "id DESC"
    column = "created_at, id" if name == "jobs" else "id"
    table = "job" if name == "jobs" else "audit"
    with engine.connect() as connection:
        at = min(4999 * size, connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() - size)
        row = connection.execute(text(f"SELECT {column} FROM {table} ORDER BY {order} OFFSET {at - 1} LIMIT 1")).one()
    if name == "jobs":
        token = write_page_token(SqlJobStore.list_of_jobs(), [row.created_at.isoformat(), row.id])
    else:
        token = write_page_token("audit::", [row.id])
    first = http_request("GET", f"/v1/{name}?page_size={size}", TOKEN)
    deep = http_request("GET", f"/v1/{name}?page_size={size}&page_token={token}", TOKEN)
    await ask(port, [first, deep] * 20)
    found = await ask(port, [first, deep] * 300)
    return median(found[::2]), median(found[1::2])


async def _streams(engine: Engine, port: int, reads: _Reads) -> tuple[list[float], Tally]:
    """Open the streams, read meanwhile, then change every job; return when each stream heard of it, and the reads."""
    store = SqlJobStore(engine)
    with engine.connect() as connection:
        query = text(f"SELECT id FROM job WHERE state = 'QUEUED' ORDER BY id LIMIT {STREAMS}")
        ids = list(connection.execute(query).scalars())
    changed_at: dict[str, float] = {}
    told_ms: list[float] = []

    async def follow(job_id: str) -> None:
        connection = await Connection.open(port)
        connection.writer.write(http_request("GET", f"/v1/jobs/{job_id}/events", TOKEN))
        async for line in connection.reader:
            if b"PAUSED" in line:
                told_ms.append((time.perf_counter() - changed_at[job_id]) * 1000)
                break
        connection.close()

    following = [asyncio.create_task(follow(job_id)) for job_id in ids]
    await asyncio.sleep(3)
    tally = await drive(port, 200, 20, reads.next)

    def change() -> None:
        for job_id in ids:
            changed_at[job_id] = time.perf_counter()
            store.apply_verb(job_id, JobVerb.PAUSE)
            time.sleep(0.02)

    await asyncio.to_thread(change)
    await asyncio.wait(following, timeout=15)
    for task in following:
        task.cancel()
    return told_ms, tally


# --- telling --------------------------------------------------------------------------------------------------------
def render(claims: list[Claim], tables: dict[str, Tally], engine: Engine) -> str:
    """Return the report as Markdown."""
    with engine.connect() as connection:
        counts = {
            name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
            for name in ("job", "measurement", "trial", "build", "audit")
        }
        size = connection.execute(text("SELECT pg_size_pretty(pg_database_size(current_database()))")).scalar_one()
    lines = [
        "# The API under load",
        "",
        "One uvicorn worker on one core; PostgreSQL and the load on the rest of the machine. "
        f"In the tables: {', '.join(f'{count:,} {name}' for name, count in counts.items())} rows, {size}. "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"load average at the end {os.getloadavg()[0]:.1f}. Made by `make bench-api`.",
        "",
        "| what | found | wanted | |",
        "|---|---|---|---|",
        *(f"| {c.what} | {c.found} | {c.wanted} | {'holds' if c.holds else '**does not hold**'} |" for c in claims),
        "",
        "Requests are sent when they are due, whether or not those before are answered, and their latency counts from then.",
        "",
        "| read | share | p50 ms | p99 ms | with streams: p50 | p99 |",
        "|---|---|---|---|---|---|",
    ]
    alone, streamed = tables.values()
    for name, share in READS.items():
        cells = [
            f"{value:.1f}"
            for tally in (alone, streamed)
            for value in (median(tally.latencies_ms[name]), percentile(tally.latencies_ms[name], 0.99))
        ]
        lines.append(f"| {name} | {share} % | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
