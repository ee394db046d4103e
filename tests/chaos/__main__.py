"""``python -m tests.chaos``: rounds of faults on a whole system; prints the table, and writes it as a report.

make chaos                                              # 200 faults in 5 rounds, about half an hour
python -m tests.chaos --json build/chaos.jsonl --for-s 1    # one round; called again it goes on with the next
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.chaos.report import render
from tests.chaos.rounds import run_round, say
from tests.chaos.same_front import compare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--faults", type=int, default=40, help="A round.")
    parser.add_argument("--jobs", type=int, default=5, help="A round, at least.")
    parser.add_argument("--pause-s", type=float, default=4.0, help="Mean time between two faults.")
    parser.add_argument(
        "--kills", type=int, default=10, help="Of the job whose front must not change; 0: leave it out."
    )
    parser.add_argument("--for-s", type=float, default=float("inf"), help="Begin nothing new after this many seconds.")
    parser.add_argument(
        "--json", type=Path, default=None, help="Every round, a line each; what is there is not redone."
    )
    parser.add_argument("--report", type=Path, default=None, help="Write the table as markdown.")
    parser.add_argument(
        "--logs", type=Path, default=Path("build/chaos-logs"), help="Logs of rounds that found something."
    )
    given = parser.parse_args()
    lines = given.json.read_text().splitlines() if given.json is not None and given.json.exists() else []
    results = [json.loads(line) for line in lines]
    began = time.monotonic()

    def keep(result: dict[str, object]) -> None:
        results.append(result)
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            with given.json.open("a") as file:
                file.write(json.dumps(result) + "\n")

    for number in range(given.rounds):
        seed = given.seed + number
        if any(result["kind"] == "round" and result["seed"] == seed for result in results):
            continue
        if time.monotonic() - began > given.for_s:
            break
        say(f"round {number + 1} of {given.rounds}, seed {seed}")
        found = run_round(
            seed, faults=given.faults, jobs=given.jobs, mean_pause_s=given.pause_s, logs=given.logs / str(seed)
        )
        keep({"kind": "round", **found.as_json()})
    is_known = any(result["kind"] == "same front" for result in results)
    if given.kills and not is_known and time.monotonic() - began <= given.for_s:
        say(f"the same job without faults, then with {given.kills} kills")
        keep({"kind": "same front", **compare(given.seed, kills=given.kills, logs=given.logs / "same-front")})
    text = render(results)
    sys.stdout.write(text)
    if given.report is not None:
        given.report.write_text(text)
    is_whole = all(not result["broken"] for result in results if result["kind"] == "round")
    return 0 if is_whole and all(result["is_same"] for result in results if result["kind"] == "same front") else 1


if __name__ == "__main__":
    sys.exit(main())
