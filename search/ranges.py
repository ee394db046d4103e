"""How far each group may be pruned, and why that moved: the record of what trials taught. Pure.

A group whose narrowing cost less than its probes say gets a higher ceiling; the factor behind it also bends the knapsack's prices,
up or down (``search.loss_model``). Each move is kept with its reason in the job's report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from search.loss_model import LossModel

LEAST_MOVE = 0.02  # of sparsity: below it a move is not worth a line
LEAST_FACTOR_MOVE = 0.1


def moved(loss: LossModel, before: Mapping[str, JsonValue]) -> dict[str, JsonValue] | None:
    """Return the report's new ``ranges`` entry of a target, or None where nothing moved enough.

    Args:
        loss: The loss model as fitted now.
        before: The entry so far: ``{"ceilings": {group: sparsity}, "factors": {group: factor}, "moves": [...]}``; may be empty.
    """
    ceilings_before = _numbers(before.get("ceilings"))
    factors_before = _numbers(before.get("factors"))
    ceilings = {group.name: round(loss.ceiling(group), 4) for group in loss.network.groups}
    factors = {group.name: round(loss.factors.get(group.name, 1.0), 3) for group in loss.network.groups}
    moves: list[JsonValue] = []
    for name, ceiling in ceilings.items():
        was = ceilings_before.get(name, ceiling)
        factor_was = factors_before.get(name, 1.0)
        if abs(ceiling - was) < LEAST_MOVE and abs(factors[name] - factor_was) < LEAST_FACTOR_MOVE:
            ceilings[name], factors[name] = was, factor_was  # small steps add up until they are worth a line
            continue
        moves.append(
            {
                "group": name,
                "trials": loss.trials,
                "ceiling": [was, ceiling],
                "factor": [factor_was, factors[name]],
                "reason": _reason(factors[name], factor_was),
            }
        )
    if before and not moves:
        return None
    so_far = before.get("moves")
    return {
        "ceilings": {**ceilings},
        "factors": {**factors},
        "moves": [*(so_far if isinstance(so_far, Sequence) and not isinstance(so_far, str) else []), *moves],
    }


def _reason(factor: float, before: float) -> str:
    if factor > before:
        return f"trials that narrowed it lost more than its probes say: its loss now counts {factor:.2f} times"
    return f"trials that narrowed it lost less than its probes say: its loss now counts {factor:.2f} times"


def _numbers(value: JsonValue) -> dict[str, float]:
    if not isinstance(value, Mapping):
        return {}
    return {name: float(number) for name, number in value.items() if isinstance(number, int | float)}
