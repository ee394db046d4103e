"""How long, and at what rate, a network is trained back: the narrower, the more of both. Pure.

A narrow network trains faster, though not by as much as its work is less: it gets more epochs by the root of that, up to so many
times the job's. In proportion to the work a ResNet-14 of a fifth of it took six times as long as the dense one.

Further from where it was, it stands a higher rate, too. Of 0.02, 0.04, 0.06 and 0.09, times the stretch, the last two left a
ViT of an eighth of the work and less most accuracy after the long recovery (half a point over 0.04, 1.4 more over 0.02); 0.04
left one of a third as much as 0.02, one of four fifths 0.7 points less; a MobileNet and a ResNet-14 of a twentieth lost
nothing by 0.06. Hence a rate by the square of the stretch.
"""

from __future__ import annotations

from domain.candidate import RecoveryPlan
from domain.job import RecoverySpec

NEUTRAL_RATE = 0.02
LONGEST_STRETCH = 3.0
# Times as long where layer norms are brought back: a ViT cut in three steps to 2.9 and 5.4 times the speed had lost 3 to 4 points
# less after as many short recoveries, up to 0.3 less after the long one. Three times as long brought 1.3 points more before that
# one, and 0.2 at the most after it.
SLOW = 2.0


def stretch_of(share: float) -> float:
    """Return how many times the epochs of a wide network's recovery suit one of a share of the work."""
    return float(min(LONGEST_STRETCH, max(share, 1e-6) ** -0.5))


def rate_of(share: float, rate: float = NEUTRAL_RATE) -> float:
    """Return the learning rate of a network of a share of the work, for that of a wide one."""
    return float(f"{rate * stretch_of(share) ** 2:.3g}")


def short_plan(
    recovery: RecoverySpec, share: float, rate: float = NEUTRAL_RATE, *, is_slow: bool = False
) -> RecoveryPlan:
    """Return the recovery of a trial: what the job asks for, as suits a share of the work, and a model that is slow to recover."""
    return RecoveryPlan(
        epochs=round(recovery.epochs * stretch_of(share) * (SLOW if is_slow else 1.0), 2),
        learning_rate=rate_of(share, rate),
        distill=recovery.distill,
        precision=recovery.precision,
    )
