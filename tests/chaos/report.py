"""The table of a run, as markdown."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

from domain.work import HEARTBEAT_S, LEASE_S
from tests.chaos.recovery import alone_times, by_kind, percentile

WHOLE = 200

INVARIANTS = {
    "I1": "every job that was accepted ended (jobs lost)",
    "I2": "one accepted measurement each (counted twice)",
    "I3": "no two leases on one device",
    "I4": "no stale write accepted",
    "I5": "trials asked = told; no work left over",
    "I6": "one Idempotency-Key, one job",
    "I7": "every stored file is what its digest says",
    "I8": "no event missed by a stream that resumes",
    "I9": "work of a cancelled job ends in time",
}


def render(results: Sequence[dict[str, Any]]) -> str:
    """Return the report of all rounds, and of the job that had to end with the same front."""
    rounds = [result for result in results if result["kind"] == "round"]
    same = [result for result in results if result["kind"] == "same front"]
    faults = [fault for found in rounds for fault in found["faults"]]
    counts: Counter[str] = Counter()
    for found in rounds:
        counts.update(found["counts"])
    lines = [
        "# Nothing lost: what survives which fault",
        "",
        "Written by `make chaos` (`python -m tests.chaos --report docs/benchmarks/chaos.md`); every round is seeded.",
        "",
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}. Default leases: {LEASE_S:g} s, a heartbeat every {HEARTBEAT_S:g} s. "
        "2 search and 2 build workers, 2 reapers, 3 replay agents, 1 agent with onnxruntime, embedded PostgreSQL, Valkey.",
        "",
        f"{len(faults)} faults in {len(rounds)} rounds of {sum(found['wall_s'] for found in rounds) / 60:.0f} minutes in all "
        f"(seeds {', '.join(str(found['seed']) for found in rounds)}) on {counts['jobs']} jobs. "
        f"Network cut by {_words(rounds, 'network')}; disk full by {_words(rounds, 'disk')}."
        + ("" if len(faults) >= WHOLE else f" This is a part: a whole run has {WHOLE} faults."),
        "",
        "## Invariants, checked in the database after each round",
        "",
        "| | | broken |",
        "|---|---|---|",
    ]
    for name, what in INVARIANTS.items():
        broken = sum(len(found["broken"].get(name, [])) for found in rounds)
        lines.append(f"| {name} | {what} | {broken} |")
    lines += [
        "",
        f"Jobs: {counts['jobs']}, of them {counts['SUCCEEDED']} succeeded, {counts['STOPPED']} stopped and "
        f"{counts['CANCELLED']} cancelled as asked, {counts['FAILED']} failed. Trials: {counts['trials']}; "
        f"builds: {counts['builds']}; measurements: {counts['measurements']} in {counts['attempts']} attempts; "
        f"late outcomes refused by the fence: {counts['fenced']}; files verified: {counts['artifacts']}.",
        "",
    ]
    lines += [f"- failed: {text}" for found in rounds for text in found["failed"]]
    lines += [
        f"- broken {name}: {text}" for found in rounds for name, all_ in found["broken"].items() for text in all_[:5]
    ]
    lines += [
        "",
        "## From the fault to the work going on again, seconds",
        "",
        "From the rows and every change of them, by the database's clock: `search`, `build`, `agent`: until what the victim held "
        "is leased anew or has ended; `api`, `postgres`: until the next write; `reaper` (all at once): until the next pass; "
        "`valkey`: until the next lease. A stop (SIGSTOP, then SIGCONT after 1 to 14 s), a cut and a full disk last as long "
        "as they are made to last. `n`: rows that were waited for; a victim that held nothing has none. *Alone*: of these, what "
        "met no other fault before the work went on; a kill while all networks are cut waits for the networks.",
    ]
    for title, some in _by_share(rounds):
        lines += [
            "",
            title,
            "",
            "| fault | component | faults | n | p50 | p95 | longest | alone: n | p50 | p95 | longest |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        alone = by_kind([row for found in some for row in alone_times(found["faults"])])
        rows = [(fault["action"], fault["component"], fault["times_s"]) for found in some for fault in found["faults"]]
        for kind, (count, times) in sorted(by_kind(rows).items(), key=lambda item: item[0]):
            cells = [*kind, str(count), *_figures(times), *_figures(alone.get(kind, (0, []))[1])]
            lines.append(f"| {' | '.join(cells)} |")
    for one in same:
        killed = ", ".join(
            f"{count} {what}" for what, count in sorted(Counter(k.split()[0] for k in one["kills"]).items())
        )
        verdict = "the same, bit for bit" if one["is_same"] else "DIFFERENT"
        lines += [
            "",
            "## The same job without a kill, and through ten",
            "",
            f"A job of one trial at a time on a replay device (seed {one['seed']}); {len(one['kills'])} kills ({killed}). "
            f"Both fronts, {one['points']} points with accuracies, latencies, candidates and file digests: {verdict}.",
        ]
    return "\n".join(lines) + "\n"


def _figures(times: Sequence[float]) -> list[str]:
    return [str(len(times)), *(f"{percentile(times, share):.2f}" if times else "" for share in (0.5, 0.95, 1.0))]


def _by_share(rounds: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Part the rounds that had the cores when they wanted them from those that had to share them with other people's work."""
    free = [
        found for found in rounds if found.get("nice", 0) <= -10 or found.get("load", 0.0) < 2 * (os.cpu_count() or 1)
    ]
    shared = [found for found in rounds if found not in free]
    cores = os.cpu_count()
    told = []
    if free:
        how = sorted({found.get("nice", 0) for found in free})
        first = f"With the machine's {cores} cores to itself"
        if how[0] <= -10:
            first = f"Before other work on the machine (its processes at nice {how[0]}), as on {cores} cores of its own"
        told.append((f"{first} ({_count(free)}):", free))
    if shared:
        load = " to ".join(f"{of(found.get('load', 0.0) for found in shared):.0f}" for of in (min, max))
        told.append((f"Among other people's work, at a load of {load} on {cores} cores ({_count(shared)}):", shared))
    return told


def _count(rounds: Sequence[dict[str, Any]]) -> str:
    return f"{sum(len(found['faults']) for found in rounds)} faults"


def _words(rounds: Sequence[dict[str, Any]], name: str) -> str:
    return " and ".join(sorted({str(found[name]) for found in rounds}))
