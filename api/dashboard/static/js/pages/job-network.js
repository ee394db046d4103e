import { html, useMemo, useState } from "../../vendor/preact.js";
import { heatChart } from "../charts/heat.js";
import { count, ms, percent, times } from "../format.js";
import { sparsityOf, trialsOf } from "../front.js";
import { useChart, usePalette } from "../hooks.js";
import { Card, Empty, Loading } from "../parts.js";
import { routeTo } from "../route.js";

function Network({ job, front, columns, target }) {
  const palette = usePalette();
  const [wanted, setWanted] = useState(null);
  if (!columns || !front) return html`<${Loading} what="the network" />`;
  if (!columns.groups.length) return html`<${Empty} title="The network is not known yet."><p>It is traced when the dense model is prepared, at the beginning of the job.</p><//>`;
  const trials = trialsOf(columns);
  const account = job.report.why?.[String(target)];
  const onFront = front.items.map((point) => point.trial);
  const numbers = onFront.length ? onFront : trials.filter((trial) => trial.speedup !== null).map((trial) => trial.number);
  const shown = numbers.includes(wanted) ? wanted : numbers[0];
  const trial = trials.find((one) => one.number === shown);
  return html`
    ${trial ? html`<${Card} title="Before and after" actions=${html`<label for="which">Trial</label><select id="which" onChange=${(event) => setWanted(Number(event.target.value))}>
        ${numbers.map((number) => html`<option value=${number} selected=${number === shown}>${number} · ${times(speedupOf(front, trials, number))}</option>`)}</select>
        <a href=${routeTo(["jobs", job.id, "trials", String(shown)])}>Open it</a>`}>
      <${Picture} columns=${columns} index=${trial.index} account=${account?.trials?.[String(shown)]} fixed=${account?.fixed_ms} /><//>` : html`<${Empty} title="No trial is measured yet."><//>`}
    <${Card} title="What every trial removed"><${Heat} job=${job} columns=${columns} trials=${trials} palette=${palette} /><//>
    ${job.report.unprunable?.length ? html`<${Card} title="What stays whole"><dl class="pairs">${job.report.unprunable.map((one) => html`<div><dt class="mono">${one.name}</dt><dd>${one.reason}</dd></div>`)}</dl><//>` : null}`;
}

function speedupOf(front, trials, number) {
  return front.items.find((point) => point.trial === number)?.speedup ?? trials.find((one) => one.number === number)?.speedup;
}

/** The network block by block: a dashed outline is the dense width, the filled bar what is left of it. */
export function Picture({ columns, index, account, fixed }) {
  const size = columns.groups.length;
  const gone = new Set(columns.dropped[index].flatMap((block) => columns.blocks[block].groups));
  const goneBlocks = columns.dropped[index].map((block) => columns.blocks[block].name);
  const most = Math.max(...columns.groups.map((group) => group.channels));
  const bought = new Map((account || []).map((one) => [one.group, one]));
  const rows = columns.groups.map((group, place) => ({ ...group, kept: gone.has(group.name) ? 0 : columns.widths[index * size + place], why: bought.get(group.name) }));
  const stages = [...new Set(rows.map((row) => row.stage))].sort((a, b) => a - b);
  return html`<ol class="net">${stages.map((stage) => html`<li class="stage-row"><span class="stage">Stage ${stage + 1}</span></li>${rows.filter((row) => row.stage === stage).map((row) => html`<${Layer} row=${row} most=${most} />`)}`)}</ol>
    ${goneBlocks.length ? html`<p>Blocks that went altogether: ${goneBlocks.map((name) => html`<code>${name}</code> `)}</p>` : null}
    <p class="hint">Width in channels, dense outlined, kept filled. ${account ? html`Milliseconds are <em>predicted</em>: what the removed channels of a group buy, all else as it is${fixed !== undefined ? `; ${ms(fixed)} no pruning removes` : ""}.` : "What each bought in milliseconds is told of finalists, once the search has ended."}</p>`;
}

function Layer({ row, most }) {
  const width = (channels) => `${(channels / most) * 100}%`;
  const free = row.why?.free_channels ? `${row.why.free_channels} channels would come back free` : null;
  return html`<li class=${row.kept ? "" : "gone"}><span class="name mono" title=${`${row.name}: ${count(row.macs)} MACs${row.is_residual ? ", coupled by a skip" : ""}`}>${row.name}</span>
    <span class=${`layer ${row.kept ? "" : "gone"}`} aria-hidden="true"><span class="before" style=${{ inlineSize: width(row.channels) }}></span><span class="after" style=${{ inlineSize: width(row.kept) }}></span></span>
    <span class="num">${row.kept} <span class="soft">of ${row.channels}</span></span>
    <span class="num soft" title=${free}>${row.why ? `${row.why.bought_ms >= 0 ? "−" : "+"}${ms(Math.abs(row.why.bought_ms))}` : row.kept ? "" : "gone"}</span></li>`;
}

function Heat({ job, columns, trials, palette }) {
  const cells = useMemo(() => trials.map((trial) => ({ number: trial.number, values: sparsityOf(columns, trial.index) })), [columns]);
  const rows = columns.groups.map((group) => group.name);
  const box = useChart(heatChart, {
    palette, columns: cells, rows,
    describe: (row, column) => {
      const trial = trials[column];
      return [`Trial ${trial.number}, ${rows[row]}`, `${percent(cells[column].values[row], 0)} removed`, `${trial.state}${trial.speedup === null ? "" : `, ${times(trial.speedup)}, accuracy ${percent(trial.accuracy, 1)}`}`];
    },
    onPick: (column) => { location.hash = routeTo(["jobs", job.id, "trials", String(trials[column].number)]); },
  });
  return html`<div class="chart" ref=${box} role="img" aria-label=${`Sparsity of ${rows.length} groups over ${trials.length} trials`}></div>
    <p class="hint"><span class="ramp" aria-hidden="true"></span> From nothing removed to all of it; a column is a trial, in the order they were asked. Click one to open it.</p>`;
}

export const TABS = { network: Network };
