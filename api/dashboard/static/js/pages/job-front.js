import { html, useMemo } from "../../vendor/preact.js";
import { frontChart } from "../charts/front.js";
import { bytes, count, interval, ms, percent, times } from "../format.js";
import { pointOf, ties, trialsOf } from "../front.js";
import { useChart, usePalette } from "../hooks.js";
import { Badge, Card, Empty, Loading, Table } from "../parts.js";
import { routeTo } from "../route.js";

export function FrontTab({ job, front, columns, target }) {
  const palette = usePalette();
  const series = useMemo(() => [seriesOf(front, columns)], [front, columns]);
  if (!front) return html`<${Loading} what="the front" />`;
  if (!front.dense.length) {
    return html`<${Empty} title="Nothing is measured yet."><p>${job.reason || "The dense model is prepared and measured first; every point appears here as soon as it is."}</p></${Empty}>`;
  }
  const [{ points, dense }] = series;
  return html`
    <${Card} title=${front.is_final ? "Front: finals, measured together, accuracy on the test split" : "Front so far: measured once, accuracy on the search split"}>
      <${FrontPlot} series=${series} palette=${palette} maxDrop=${job.spec.objective.max_drop} metric=${nameOf(job.spec.objective.metric)}
        onPick=${(number) => { location.hash = routeTo(["jobs", job.id, "trials", String(number)]); }} />
      <${Legend} points=${points} dense=${dense} series=${series[0]} isFinal=${front.is_final} />
    <//>
    <${FrontTable} job=${job} points=${points} dense=${dense} target=${target} />
    <${Joint} job=${job} />`;
}

/** One model for all targets, where a job has several: told when the search has ended. */
function Joint({ job }) {
  const points = job.report.joint || [];
  if (job.spec.targets.length < 2 || !points.length) return null;
  return html`<${Card} title="One model for all targets"><${Table} caption="One model for all targets"
      head=${["Trial", ...job.spec.targets.map((target, index) => `#Target ${index}: ${target.runtime}`), "#Slowest of them", "#Accuracy"]}>
    ${points.map((point) => html`<tr><th scope="row"><a href=${routeTo(["jobs", job.id, "trials", String(point.trial)])}>Trial ${point.trial}</a></th>
      ${point.speedups.map((speedup) => html`<td class="num">${times(speedup)}</td>`)}<td class="num"><strong>${times(point.least_speedup)}</strong></td><td class="num">${percent(point.accuracy_search, 2)}</td></tr>`)}<//>
    <p class="hint">Non-dominated by accuracy on the search split and the speed-up where it gains least.</p><//>`;
}

const nameOf = (metric) => metric[0].toUpperCase() + metric.slice(1);

export function seriesOf(front, columns, extra = {}) {
  const trials = columns ? trialsOf(columns) : [];
  const points = front ? front.items.map(pointOf) : [];
  const onFront = front && !front.is_final ? new Set(points.map((point) => point.trial)) : new Set();
  return {
    name: "", color: "", points, dense: front ? front.dense.map(pointOf) : [],
    trials: trials.filter((trial) => trial.latency !== null && trial.accuracy !== null && trial.state === "succeeded" && !onFront.has(trial.number)),
    predicted: trials.filter((trial) => trial.predicted !== null && trial.accuracy !== null), ...extra,
  };
}

export function FrontPlot(props) {
  const box = useChart(frontChart, props);
  const shown = props.series.reduce((sum, one) => sum + one.points.length, 0);
  return html`<div class="chart" id="front-chart" ref=${box} role="img" aria-label=${`Accuracy against latency: ${shown} points on the front. The table below holds the same figures.`}></div>`;
}

function Legend({ points, dense, series, isFinal }) {
  const precisions = [...new Set(points.map((point) => point.precision))];
  const hasTies = ties(points).some((tie) => tie !== null);
  return html`<ul class="legend" aria-label="Legend">
    ${precisions.map((precision) => html`<li><${Glyph} kind="dot" tone=${precision} />front, ${precision}</li>`)}
    ${points.some((point) => !point.within) ? html`<li><${Glyph} kind="ring" tone="fp32" />loses more than allowed</li>` : null}
    ${dense.length ? html`<li><${Glyph} kind="diamond" tone="dense" />dense model${dense.length > 1 ? ` in ${dense.map((one) => one.precision).join(", ")}` : ""}</li>` : null}
    ${series.trials.length ? html`<li><${Glyph} kind="small" tone="cloud" />measured${isFinal ? " during the search" : ""}, not on the front</li>` : null}
    ${series.predicted.length ? html`<li><${Glyph} kind="dashed" tone="soft" />predicted, never measured</li>` : null}
    ${hasTies ? html`<li><${Glyph} kind="tie" tone="fp32" />a tie: intervals overlap</li>` : null}
    <li>bars: 95 % intervals; drag to look closer, double-click to go back; click a point for its trial</li></ul>`;
}

export function Glyph({ kind, tone }) {
  const color = `var(--${tone})`;
  const shapes = {
    dot: html`<circle cx="7" cy="7" r="4.500" fill=${color} />`, small: html`<circle cx="7" cy="7" r="2.800" fill=${color} />`,
    ring: html`<circle cx="7" cy="7" r="4" fill="none" stroke=${color} stroke-width="1.500" />`,
    dashed: html`<circle cx="7" cy="7" r="4" fill="none" stroke=${color} stroke-width="1.200" stroke-dasharray="2 2" />`,
    diamond: html`<path d="M7 1.500 12.500 7 7 12.500 1.500 7z" fill=${color} />`,
    tie: html`<circle cx="7" cy="7" r="3" fill=${color} /><circle cx="7" cy="7" r="6" fill="none" stroke=${color} />`,
  };
  return html`<svg width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">${shapes[kind]}</svg>`;
}

function FrontTable({ job, points, dense }) {
  if (!points.length) {
    return html`<${Empty} title="No candidate beats the dense model yet."><p>Points appear here, without a reload, as devices measure them.</p></${Empty}>`;
  }
  const tied = ties(points);
  return html`<${Table} caption="The front" head=${["Trial", "#Speed-up [95 %]", "#Latency [95 %]", "#Accuracy", "Precision", "#Size", "#MACs", "#Parameters", ""]}>
    ${points.map((point, index) => html`<tr key=${point.trial}>
      <th scope="row"><a href=${routeTo(["jobs", job.id, "trials", String(point.trial)])}>Trial ${point.trial}</a></th>
      <td class="num"><strong>${times(point.speedup)}</strong> <span class="soft">${interval(point.speedupLow, point.speedupHigh)}</span>${tied[index] !== null ? html`<span class="note">a tie with its neighbour</span>` : null}</td>
      <td class="num">${ms(point.latency)} <span class="soft">${interval(point.low, point.high)}</span></td>
      <td class="num">${percent(point.accuracy, 2)}<span class="note">${point.isTest ? "test" : "search"} split</span></td>
      <td>${point.precision}</td><td class="num">${bytes(point.size)}</td><td class="num">${count(point.macs)}</td><td class="num">${count(point.params)}</td>
      <td>${point.within ? null : html`<${Badge} state="paused">beyond the drop<//>`}${point.isNoisy ? html`<${Badge} state="paused">noisy<//>` : null}${point.isSuspect ? html`<${Badge} state="failed">suspect<//>` : null}</td></tr>`)}
    ${dense.map((point) => html`<tr key=${`dense-${point.precision}`}><th scope="row">Dense</th><td class="num">1.00×</td>
      <td class="num">${ms(point.latency)} <span class="soft">${interval(point.low, point.high)}</span></td>
      <td class="num">${percent(point.accuracy, 2)}<span class="note">${point.isTest ? "test" : "search"} split</span></td>
      <td>${point.precision}</td><td class="num">${bytes(point.size)}</td><td class="num">${count(point.macs)}</td><td class="num">${count(point.params)}</td><td></td></tr>`)}
  <//>`;
}
