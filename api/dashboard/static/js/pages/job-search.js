import { html, useMemo } from "../../vendor/preact.js";
import { ramp } from "../charts/heat.js";
import { lineChart } from "../charts/lines.js";
import { parallelChart } from "../charts/parallel.js";
import { digits, duration, percent, times } from "../format.js";
import { sparsityOf, trialsOf } from "../front.js";
import { useChart, useData, usePalette } from "../hooks.js";
import { Card, Empty, Loading, Table, Trouble } from "../parts.js";
import { routeTo } from "../route.js";

const AXES = 8; // groups shown as coordinates: those that matter most

function Search({ job, columns, target }) {
  const palette = usePalette();
  const over = Boolean(job.finished_at);
  const importance = useData(`/v1/jobs/${job.id}/importance?target=${target}`, over ? 0 : 10000);
  if (!columns) return html`<${Loading} what="the trials" />`;
  return html`
    <${Card} title="What changed since it began: hypervolume"><${Growth} columns=${columns} palette=${palette} /><//>
    <${Card} title="Which parts decide"><${Trouble} error=${importance.error} again=${importance.reload} />${importance.data ? html`<${Importance} data=${importance.data} metric=${job.spec.objective.metric} />` : html`<${Loading} what="the importance" />`}<//>
    <${Card} title="Trials side by side"><${Parallel} job=${job} columns=${columns} importance=${importance.data} palette=${palette} /><//>
    <${Card} title="How far each group may be pruned"><${Ranges} ranges=${job.report.ranges?.[String(target)]} /><//>
    ${predictor(job, target)}`;
}

function Growth({ columns, palette }) {
  const grown = columns.hypervolume;
  const box = useChart(lineChart, {
    palette, height: 220, xLabel: "Time since the start", yLabel: "Hypervolume", x: grown.map(([at]) => at), xSpace: 90, xValues: (u, values) => values.map((value) => duration(value)),
    yValues: (u, values) => values.map((value) => digits(value, 3)),
    series: [{ label: "hypervolume", values: grown.map(([, area]) => area), color: palette.accent, isStepped: true }],
    describe: (index) => [`${digits(grown[index][1], 4)} after ${duration(grown[index][0])}`],
  });
  if (!grown.length) return html`<${Empty} title="No trial has finished yet."><//>`;
  return html`<div class="chart" ref=${box} role="img" aria-label=${`Hypervolume from ${digits(grown[0][1], 3)} to ${digits(grown.at(-1)[1], 3)}`}></div>
    <p class="hint">Area of (latency ratio, error) that the front covers, up to the dense model's latency and the error a candidate may reach. It only grows; where it stays flat for long, the search has had enough.</p>`;
}

function Importance({ data, metric }) {
  if (data.reason) return html`<${Empty} title="Not enough is known yet."><p>${data.reason}.</p><//>`;
  const name = { accuracy: metric, latency: "latency" };
  return html`<div class="grid">${data.of.map((one) => html`<div><h3>Of ${name[one.value]}: ${one.explained > 0 ? `${percent(one.explained, 0)} explained` : "nothing explained yet"}</h3>
      <div class="shares">${one.influences.slice(0, 10).map((part) => html`<div><span class="mono clip" title=${part.name}>${part.name}</span>
        <span class="track" aria-hidden="true"><span style=${{ inlineSize: `${(part.share / (one.influences[0].share || 1)) * 100}%`, opacity: one.explained > 0 ? 1 : 0.35 }}></span></span>
        <span class="num">${percent(part.share, 0)} <span class="soft">${part.direction < 0 ? "lowers it" : "raises it"}</span></span></div>`)}</div></div>`)}</div>
    <p class="hint">Ridge regression on ranks over ${data.trials} measured trials: removing more of a group raises or lowers it. "Explained" is told from trials that were left out; near zero, do not read much into the bars.</p>`;
}

function Parallel({ job, columns, importance, palette }) {
  const colors = useMemo(() => ramp([palette.fp32, palette.cloud, palette.int8]), [palette]);
  const trials = trialsOf(columns).filter((trial) => trial.speedup !== null && trial.accuracy !== null);
  const weights = new Map();
  for (const one of importance?.of || []) for (const part of one.influences) if (part.kind === "group") weights.set(part.name, (weights.get(part.name) || 0) + part.share * Math.max(0.01, one.explained));
  const order = columns.groups.map((group, place) => [group.name, place]).sort((a, b) => (weights.get(b[0]) || 0) - (weights.get(a[0]) || 0)).slice(0, AXES).sort((a, b) => a[1] - b[1]);
  const speedups = trials.map((trial) => trial.speedup);
  const low = Math.min(...speedups);
  const high = Math.max(...speedups);
  const sparsities = trials.map((trial) => sparsityOf(columns, trial.index));
  const box = useChart(parallelChart, {
    palette, ramp: colors,
    axes: [
      ...order.map(([name, place]) => ({ name, values: sparsities.map((one) => one[place]), format: (value) => percent(value, 0) })),
      { name: job.spec.objective.metric, values: trials.map((trial) => trial.accuracy), format: (value) => percent(value, 1) },
      { name: "speed-up", values: speedups, format: (value) => times(value) },
    ],
    colors: speedups.map((value) => (value - low) / (high - low || 1)),
    labels: trials.map((trial) => `Trial ${trial.number}: ${times(trial.speedup)}, ${percent(trial.accuracy, 1)}`),
    onPick: (index) => { location.hash = routeTo(["jobs", job.id, "trials", String(trials[index].number)]); },
  });
  if (trials.length < 2) return html`<${Empty} title="Two measured trials are needed."><//>`;
  return html`<div class="chart" ref=${box} role="img" aria-label=${`Parallel coordinates of ${trials.length} trials`}></div>
    <p class="hint">Sparsity of the ${order.length} groups that matter most, then what came of it. Drag along an axis to keep only the trials that pass there; press it to let them all back. Lines are coloured by speed-up.</p>`;
}

function Ranges({ ranges }) {
  if (!ranges) return html`<${Empty} title="No range has moved yet."><p>A group that was narrowed where accuracy was lost gets a lower ceiling, one whose narrowing cost nothing a higher one.</p><//>`;
  return html`<${Table} caption="Moves of the ranges" head=${["#After trials", "Group", "Ceiling", "Its loss counts", "Why"]}>
    ${[...ranges.moves].reverse().map((move) => html`<tr><td class="num">${move.trials}</td><th scope="row" class="mono">${move.group}</th><td>${move.ceiling[0] === move.ceiling[1] ? percent(move.ceiling[1], 0) : `${percent(move.ceiling[0], 0)} → ${percent(move.ceiling[1], 0)}`}</td><td>${times(move.factor[0])} → ${times(move.factor[1])}</td><td>${move.reason}</td></tr>`)}<//>
    <details><summary>Ceilings now</summary><dl class="pairs">${Object.entries(ranges.ceilings).map(([group, ceiling]) => html`<div><dt class="mono">${group}</dt><dd>${percent(ceiling, 0)}</dd></div>`)}</dl></details>`;
}

function predictor(job, target) {
  const found = Object.entries(job.report.predictor || {}).filter(([name]) => name.split(":")[0] === String(target));
  if (!found.length) return null;
  return html`<${Card} title="How far to trust predictions"><${Table} caption="Errors of the latency model" head=${["Precision", "#Trials", "#Median error", "#Worst tenth", "#Channels step by"]}>
    ${found.map(([name, one]) => html`<tr><th scope="row">${name.split(":")[1] || job.spec.targets[target].precision[0]}</th><td class="num">${one.trials}</td><td class="num">${percent(one.error_median)}</td><td class="num">${percent(one.error_p90)}</td><td class="num">${one.alignment}</td></tr>`)}<//>
    <p class="hint">Of trials the model had not seen when it was asked.</p><//>`;
}

export const TABS = { search: Search };
