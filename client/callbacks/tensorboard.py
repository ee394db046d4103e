"""TensorBoard: scalars and the front, a step a trial. Needs ``pip install tensorboard matplotlib``; no TensorFlow, no torch."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.schemas.jobs import JobView
from client.callbacks import TrialNews, final_scalars
from domain.front import Front

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorboardCallback:
    """Writes a run a target into a folder that ``tensorboard --logdir`` reads: ``<folder>/<job>/target-0``.

    Raises:
        ImportError: Where tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ImportError("TensorboardCallback needs tensorboard: pip install 'pruneloop[tensorboard]'") from error
        self._event, self._summary, self._writer = event_pb2.Event, summary_pb2.Summary, EventFileWriter
        self._folder = Path(folder)
        self._writers: list[Any] = []
        self._last_front: dict[int, tuple[int, ...]] = {}

    def started(self, job: JobView) -> None:
        for index, target in enumerate(job.spec.targets):
            self._writers.append(self._writer(str(self._folder / job.id / f"target-{index}")))
            text = json.dumps({"name": job.name, **target.model_dump(mode="json")}, indent=2)
            self._text(index, "job", "```json\n" + text + "\n```", _seconds(job.created_at))

    def trial_ended(self, news: TrialNews) -> None:
        trial = news.trial
        at_s = _seconds(trial.finished_at or trial.created_at)
        values = [self._summary.Value(tag=f"trial/{name}", simple_value=value) for name, value in news.scalars.items()]
        numbers = tuple(one.number for one in news.front)
        if numbers and numbers != self._last_front.get(trial.target):
            self._last_front[trial.target] = numbers
            values.append(self._picture("trial/front", _draw_trials(news)))
        self._write(trial.target, values, news.step, at_s)

    def ended(self, job: JobView, fronts: Sequence[Front]) -> None:
        from client.front import draw_front

        at_s = _seconds(job.finished_at or job.created_at)
        for front in fronts:
            values = [
                self._summary.Value(tag=f"final/{name}", simple_value=value)
                for name, value in final_scalars(front).items()
            ]
            if front.items or front.dense:
                values.append(self._picture("final/front", draw_front(front).get_figure()))
            self._write(front.target, values, 0, at_s)
        for writer in self._writers:
            writer.close()

    def _write(self, target: int, values: Sequence[Any], step: int, at_s: float) -> None:
        event = self._event(wall_time=at_s, step=step, summary=self._summary(value=list(values)))
        self._writers[target].add_event(event)
        self._writers[target].flush()

    def _text(self, target: int, tag: str, text: str, at_s: float) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb  # only where it is needed: it loads numpy

        event = self._event(wall_time=at_s, step=0, summary=text_pb(tag, text))
        self._writers[target].add_event(event)

    def _picture(self, tag: str, figure: Any) -> Any:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        width, height = (int(side * 90) for side in figure.get_size_inches())
        image = self._summary.Image(width=width, height=height, colorspace=4, encoded_image_string=buffer.getvalue())
        return self._summary.Value(tag=tag, image=image)


def _draw_trials(news: TrialNews) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.add_subplot()
    points = [one.values for one in news.front if one.values is not None]
    ax.step([one.latency_ratio for one in points], [1 - one.error for one in points], where="post", marker="o")
    for trial, values in zip(news.front, points, strict=True):
        ax.annotate(
            str(trial.number), (values.latency_ratio, 1 - values.error), textcoords="offset points", xytext=(5, -10)
        )
    ax.set_xlabel("latency / dense latency, measured")
    ax.set_ylabel("accuracy on the search split")
    ax.set_title(f"Front of target {news.trial.target} after {news.step} trials")
    ax.grid(alpha=0.3)
    return figure


def _seconds(moment: Any) -> float:
    return float(moment.timestamp())
