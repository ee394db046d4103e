// Accuracy against latency: every measured trial, the front with its intervals, the dense model in each precision, predictions apart.

import { accuracyFloor, nearest, paddedRange, ties } from "../front.js";
import { digits, interval, ms, percent, times } from "../format.js";
import { axis, mark, tooltip, uPlot } from "./plot.js";

/**
 * A chart whose props are {series, palette, maxDrop, onPick, isRatio}.
 * A series is {name, color, points, dense, trials, predicted}: points of a front, of the dense model, and measured and predicted trials.
 */
export function frontChart(box) {
  let plot = null;
  let drawn = [];
  let props = null;
  let hovered = null;
  let shape = "";
  const tip = tooltip(box);

  const place = (u, point, latency) => ({
    ...point,
    px: u.valToPos(latency, "x", true),
    py: u.valToPos(point.accuracy, "y", true),
  });

  function draw(u) {
    const { ctx } = u;
    const scale = devicePixelRatio;
    drawn = [];
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    ctx.clip();
    for (const series of props.series) {
      const dense = series.dense[0];
      if (dense && props.series.length === 1) allowed(u, ctx, dense.accuracy - props.maxDrop);
      ctx.globalAlpha = 0.75;
      for (const trial of series.trials || []) {
        const at = place(u, trial, trial.latency);
        mark(ctx, "circle", at.px, at.py, 2.6 * scale, { fill: props.palette.cloud });
        drawn.push({ ...at, series, kind: "trial" });
      }
      for (const trial of series.predicted || []) {
        const at = place(u, trial, trial.predicted);
        ctx.setLineDash([2 * scale, 2 * scale]);
        mark(ctx, "circle", at.px, at.py, 3.4 * scale, { stroke: props.palette.soft, width: 1 });
        ctx.setLineDash([]);
        drawn.push({ ...at, series, kind: "predicted" });
      }
      ctx.globalAlpha = 1;
      steps(u, ctx, series);
      const tied = ties(series.points);
      series.points.forEach((point, index) => {
        const at = place(u, point, point.latency);
        const color = colorOf(series, point);
        bar(u, ctx, point, at, color);
        if (tied[index] !== null) mark(ctx, "circle", at.px, at.py, 9 * scale, { stroke: color, width: 1 });
        const isFull = point.within !== false;
        mark(ctx, "circle", at.px, at.py, 5 * scale, { fill: isFull ? color : props.palette.card, stroke: isFull ? props.palette.card : color });
        drawn.push({ ...at, series, kind: "front", tie: tied[index] });
      });
      for (const point of series.dense) {
        const at = place(u, point, point.latency);
        bar(u, ctx, point, at, props.palette.dense);
        mark(ctx, "diamond", at.px, at.py, 5.5 * scale, { fill: series.color || props.palette.dense, stroke: props.palette.card });
        drawn.push({ ...at, series, kind: "dense" });
      }
    }
    if (hovered) {
      const same = drawn.find((point) => point.kind === hovered.kind && point.trial === hovered.trial && point.number === hovered.number && point.series.name === hovered.series.name);
      if (same) mark(ctx, "circle", same.px, same.py, 9 * scale, { stroke: props.palette.ink, width: 2 });
    }
    ctx.restore();
  }

  const colorOf = (series, point) => series.color || props.palette[point.precision] || props.palette.accent;

  function allowed(u, ctx, floor) {
    const y = u.valToPos(floor, "y", true);
    if (y > u.bbox.top + u.bbox.height || y < u.bbox.top) return;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.strokeStyle = props.palette.soft;
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(u.bbox.left, y);
    ctx.lineTo(u.bbox.left + u.bbox.width, y);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.fillStyle = props.palette.soft;
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    ctx.fillText(`allowed drop ${percent(props.maxDrop)}`, u.bbox.left + u.bbox.width - 6 * devicePixelRatio, y - 4 * devicePixelRatio);
  }

  function steps(u, ctx, series) {
    const sorted = [...series.points].sort((a, b) => a.latency - b.latency);
    if (sorted.length < 2) return;
    ctx.strokeStyle = series.color || props.palette.accent;
    ctx.globalAlpha = 0.45;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.beginPath();
    sorted.forEach((point, index) => {
      const at = place(u, point, point.latency);
      if (!index) ctx.moveTo(at.px, at.py);
      else {
        ctx.lineTo(at.px, u.valToPos(sorted[index - 1].accuracy, "y", true));
        ctx.lineTo(at.px, at.py);
      }
    });
    ctx.stroke();
    ctx.globalAlpha = 1;
  }

  function bar(u, ctx, point, at, color) {
    const cap = 4 * devicePixelRatio;
    const low = u.valToPos(point.low, "x", true);
    const high = u.valToPos(point.high, "x", true);
    ctx.strokeStyle = color;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(low, at.py);
    ctx.lineTo(high, at.py);
    for (const x of [low, high]) {
      ctx.moveTo(x, at.py - cap);
      ctx.lineTo(x, at.py + cap);
    }
    ctx.stroke();
  }

  function hover(u) {
    const { left, top } = u.cursor;
    const at = left >= 0 ? nearest(drawn, left * devicePixelRatio + u.bbox.left, top * devicePixelRatio + u.bbox.top, 18 * devicePixelRatio) : null;
    const isNew = at?.trial !== hovered?.trial || at?.number !== hovered?.number || at?.kind !== hovered?.kind;
    hovered = at;
    box.style.cursor = at && (at.trial ?? at.number ?? null) !== null ? "pointer" : "";
    if (!at) tip.hide();
    else tip.show(describe(at), at.px / devicePixelRatio, at.py / devicePixelRatio);
    if (isNew) u.redraw(false);
  }

  function build(width, height) {
    const { palette } = props;
    plot = new uPlot(
      {
        width, height, padding: [14, 14, 0, 0], legend: { show: false },
        cursor: { points: { show: false }, drag: { x: true, y: true, uni: 20 }, x: false, y: false },
        scales: { x: { time: false, range: (u, low, high) => zoomed(low, high, "x") }, y: { range: (u, low, high) => zoomed(low, high, "y") } },
        axes: [
          axis(palette, "Latency, ms (measured)", { values: (u, values) => values.map((value) => digits(value, 3)) }),
          axis(palette, props.metric || "Accuracy", { size: 62, values: (u, values) => values.map((value) => `${(value * 100).toFixed(values.length > 1 && values[1] - values[0] < 0.005 ? 2 : 1)} %`) }),
        ],
        series: [{}, { show: true, paths: () => null, points: { show: false } }],
        hooks: { draw: [draw], setCursor: [hover] },
      },
      [[0, 1], [0, 1]],
      box,
    );
    plot.over.addEventListener("click", () => {
      const number = hovered ? (hovered.trial ?? hovered.number ?? null) : null;
      if (number !== null) props.onPick?.(number, hovered.series);
    });
  }

  let ranges = { x: [0, 1], y: [0, 1] };
  let zoom = null;
  function zoomed(low, high, name) {
    // A drag gives the scale's own ends; a double click takes them away again.
    if (zoom?.[name]) return zoom[name];
    return ranges[name];
  }

  return {
    update(width, given) {
      props = given;
      const height = Math.round(Math.max(280, Math.min(460, width * 0.52)));
      const all = props.series.flatMap((one) => [...one.points, ...one.dense]);
      const trials = props.series.flatMap((one) => [...(one.trials || []), ...(one.predicted || []).map((trial) => ({ ...trial, latency: trial.predicted }))]);
      const dense = props.series[0]?.dense[0]?.accuracy;
      const floor = accuracyFloor([...all, ...trials].map((point) => point.accuracy), dense, props.maxDrop);
      const shown = [...all, ...trials.filter((trial) => trial.accuracy >= floor)];
      const x = paddedRange(shown.flatMap((point) => [point.low ?? point.latency, point.high ?? point.latency]));
      ranges = { x: [Math.max(0, x[0]), x[1]], y: paddedRange([...shown.map((point) => point.accuracy), ...(Number.isFinite(dense) && props.series.length === 1 ? [dense - props.maxDrop] : [])], 0.08, 0.002) };
      const wanted = `${JSON.stringify(props.palette)}${props.metric}`;
      if (plot && shape !== wanted) {
        plot.destroy();
        plot = null;
      }
      shape = wanted;
      if (!plot) build(width, height);
      else {
        if (plot.width !== width || plot.height !== height) plot.setSize({ width, height });
        plot.batch(() => {
          plot.setScale("x", { min: ranges.x[0], max: ranges.x[1] });
          plot.setScale("y", { min: ranges.y[0], max: ranges.y[1] });
        });
        plot.redraw();
      }
      box.dataset.points = String(all.filter((point) => point.trial !== null).length);
      box.dataset.trials = String(trials.length);
      box.places = () => drawn.map((point) => ({ kind: point.kind, number: point.trial ?? point.number ?? null, x: point.px / devicePixelRatio, y: point.py / devicePixelRatio }));
    },
    destroy() {
      plot?.destroy();
    },
  };
}

function describe(point) {
  const from = point.series.name ? ` · ${point.series.name}` : "";
  if (point.kind === "dense") return [`Dense model, ${point.precision}${from}`, `${ms(point.latency)}, accuracy ${percent(point.accuracy, 2)}`];
  if (point.kind === "predicted") {
    return [`Trial ${point.number}: predicted, not measured`, `${ms(point.predicted)} by the latency model`, `accuracy ${percent(point.accuracy, 2)} (search split)`];
  }
  if (point.kind === "trial") {
    return [`Trial ${point.number}, ${point.precision}${from}`, `${ms(point.latency)}, ${times(point.speedup)}`, `accuracy ${percent(point.accuracy, 2)} (search split)`];
  }
  return [
    `Trial ${point.trial}, ${point.precision}${from}`,
    `${times(point.speedup)} [${interval(point.speedupLow, point.speedupHigh)}]`,
    `${ms(point.latency)} [${interval(point.low, point.high)}]`,
    `accuracy ${percent(point.accuracy, 2)} (${point.isTest ? "test" : "search"} split)`,
    ...(point.tie !== null ? ["a tie with its neighbour: their intervals overlap"] : []),
    ...(point.within === false ? ["loses more than you allow"] : []),
    ...(point.isSuspect ? ["suspect: the device failed its health check later"] : []),
  ];
}
