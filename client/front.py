"""A measured front in Python: points, a table, a picture, files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.api import PruneloopClient
from client.render import front_metric, metric_text
from client.take import fetch_points, points_of
from domain.front import Front, Point
from domain.scores import LOWER_IS_BETTER

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

COLUMNS = (
    *(
        "trial",
        "precision",
        "metric",
        "metric_value",
        "accuracy",
        "accuracy_search",
        "latency_ms",
        "latency_low_ms",
        "latency_high_ms",
        "speedup",
    ),
    *("speedup_low", "speedup_high", "within_max_drop", "is_noisy", "is_suspect", "params", "macs", "size_bytes"),
    *("stage", "target", "digest", "measured_at"),
)


class MeasuredFront:
    """The front of one target: iterate over its points, fastest first; ``dense`` holds the unpruned model."""

    def __init__(self, client: PruneloopClient, front: Front) -> None:
        self._client = client
        self.front = front

    def __iter__(self) -> Iterator[Point]:
        return iter(self.front.items)

    def __len__(self) -> int:
        return len(self.front.items)

    def __getitem__(self, index: int) -> Point:
        return self.front.items[index]

    def __repr__(self) -> str:
        kind = "final" if self.front.is_final else "provisional"
        return f"MeasuredFront(target={self.front.target}, {kind}, {len(self)} points)"

    @property
    def dense(self) -> tuple[Point, ...]:
        return self.front.dense

    @property
    def best(self) -> Point | None:
        """The fastest pruned point that keeps within the accuracy drop the job allows; None: there is none."""
        return next((point for point in self if point.within_max_drop and point.trial is not None), None)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a row a point, the dense model's first (``trial`` is missing there), then the front, fastest first.

        Raises:
            ImportError: Where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install 'pruneloop[plots]'") from error
        rows = [_row(point) for point in (*self.front.dense, *self.front.items)]
        return pandas.DataFrame(rows, columns=list(COLUMNS)).astype({"trial": "Int64"})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw accuracy over latency, intervals and the dense model included; return the axes.

        Args:
            ax: Where to draw; None: a new figure.

        Raises:
            ImportError: Where matplotlib is not installed.
        """
        return draw_front(self.front, ax)

    def download(self, folder: Path | str, *, trial: int | None = None, format: str | None = None) -> list[Path]:
        """Bring the files here, each verified against its digest; ``trial`` None: the whole front and the dense model."""
        taken = fetch_points(self._client, points_of(self.front, trial=trial), Path(folder), format=format)
        return list(taken.values())

    def _repr_html_(self) -> str:
        try:
            return str(self.to_dataframe().to_html(index=False, na_rep="dense"))
        except ImportError:
            return repr(self)


def draw_front(front: Front, ax: Axes | None = None) -> Axes:
    """Draw a front; see ``MeasuredFront.plot``. Raises ImportError where matplotlib is not installed."""
    if ax is None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'pruneloop[plots]'") from error
        # No pyplot: no global state, no display, and nothing kept alive that nobody closes.
        ax = Figure(figsize=(7, 4.5), layout="constrained").add_subplot()
    for precision in dict.fromkeys(point.precision for point in (*front.dense, *front.items)):
        for points, marker, name in (
            ([one for one in front.items if one.precision == precision], "o", precision),
            ([one for one in front.dense if one.precision == precision], "*", f"dense {precision}"),
        ):
            if points:
                _draw(ax, points, marker, name)
    tested = next((point.test_samples for point in front.items if point.test_samples), None)
    ax.set_xlabel("latency, ms (95 % interval)")
    metric = front_metric(front)
    ax.set_ylabel(f"{metric} on {tested} test samples" if tested else f"{metric} on the search split")
    if metric in LOWER_IS_BETTER:
        ax.invert_yaxis()  # up is better, as on every other front
    ax.set_title(f"Front of target {front.target}" + ("" if front.is_final else " (provisional)"))
    ax.grid(alpha=0.3)
    if front.dense or front.items:
        ax.legend()
    return ax


def _row(point: Point) -> dict[str, Any]:
    (latency_low_ms, latency_high_ms), (speedup_low, speedup_high) = point.latency_ci_ms, point.speedup_ci
    known = point.model_dump(include=set(COLUMNS))
    return {
        **known,
        "latency_low_ms": latency_low_ms,
        "latency_high_ms": latency_high_ms,
        "speedup_low": speedup_low,
        "speedup_high": speedup_high,
        "digest": point.artifacts[0].digest if point.artifacts else None,
    }


def _draw(ax: Axes, points: list[Point], marker: str, name: str) -> None:
    latency = [point.latency_ms for point in points]
    low = [point.latency_ms - point.latency_ci_ms[0] for point in points]
    high = [point.latency_ci_ms[1] - point.latency_ms for point in points]
    values = [float(metric_text(point)) for point in points]
    ax.errorbar(latency, values, xerr=[low, high], fmt=marker, capsize=3, label=name)
    for point, x, y in zip(points, latency, values, strict=True):
        if point.trial is not None:
            ax.annotate(f"{point.speedup:.2f}x", (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8)
