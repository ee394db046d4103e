"""Two pictures a task: the fronts, and how the hypervolume grew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.search_quality.report import Judged
from benchmarks.search_quality.scores import Run, area, curve, delivered, is_ours

# The order colours are given in: ours is black and thick, peers keep theirs from picture to picture.
PEER_COLOURS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]


def draw(judged: Judged, folder: Path, ours: str) -> list[str]:
    """Write the pictures of a task as svg; returns their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for what, paint in (("front", _fronts), ("hypervolume", _growth)):
        figure, axes = plt.subplots(figsize=(7, 4.2))
        paint(axes, judged, ours)
        axes.set_title(judged.title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
        figure.tight_layout()
        name = f"search_quality-{judged.slug}-{what}.svg"
        figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)
        names.append(name)
    return names


def _fronts(axes: Axes, judged: Judged, ours: str) -> None:
    """The seed in the middle of each method, by area."""
    for method, runs in _by_method(judged.runs).items():
        ordered = sorted(runs, key=lambda run: area(run.points, judged.box))
        points = delivered(ordered[(len(ordered) - 1) // 2].points)
        xs = [point.speedup for point in points]
        spread = [[x - p.low for x, p in zip(xs, points, strict=True)], [p.high - p.speedup for p in points]]
        ys = [point.test * 100 for point in points]
        axes.errorbar(xs, ys, xerr=np.abs(spread), marker=".", **_style(method, judged, ours))
    axes.axhline(judged.dense_test * 100, color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylim(judged.box.floor * 100, judged.dense_test * 100 + 1.5)
    axes.set_xlabel("speed-up over the dense model, measured")
    axes.set_ylabel("accuracy on test, %")


def _growth(axes: Axes, judged: Judged, ours: str) -> None:
    """Mean over seeds."""
    seconds = np.linspace(0, judged.budget_s, 400)
    for method, runs in _by_method(judged.runs).items():
        values = np.zeros_like(seconds)
        for run in runs:
            at, level = (np.array(column) for column in zip(*curve(run, judged.box), strict=True))
            values += level[np.searchsorted(at, seconds, side="right") - 1] / len(runs)
        axes.plot(seconds, values, **_style(method, judged, ours))
    axes.set_xlabel("wall-clock s")
    axes.set_ylabel("hypervolume on test, share of the box")


def _style(method: str, judged: Judged, ours: str) -> dict[str, object]:
    if method == ours:
        return {"label": method, "color": "black", "linewidth": 2.2, "zorder": 5}
    names = sorted(_by_method(judged.runs))
    dashes = "--" if is_ours(method, ours) or names.index(method) >= len(PEER_COLOURS) else "-"
    return {
        "label": method,
        "color": PEER_COLOURS[names.index(method) % len(PEER_COLOURS)],
        "linewidth": 1.1,
        "linestyle": dashes,
    }


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.method):
        found.setdefault(run.method, []).append(run)
    return found
