import { html } from "../../vendor/preact.js";
import { timelineChart } from "../charts/timeline.js";
import { duration } from "../format.js";
import { useChart, useData, usePalette } from "../hooks.js";
import { Card, Empty, Loading, Stat, Trouble } from "../parts.js";
import { routeTo } from "../route.js";
import { lanesOf, sumsOf } from "../timeline.js";

function Timeline({ job }) {
  const palette = usePalette();
  const { data, error, reload } = useData(`/v1/jobs/${job.id}/timeline`, job.finished_at ? 0 : 3000);
  if (!data) return html`<${Trouble} error=${error} again=${reload} /><${Loading} what="the timeline" />`;
  if (!data.spans.length) return html`<${Empty} title="Nothing was carried out yet."><p>${job.reason || "A search worker takes the job when its turn comes."}</p><//>`;
  const sums = sumsOf(data.spans);
  return html`<${Card} title="Who did what when"><${Chart} job=${job} data=${data} palette=${palette} />
      <ul class="legend" aria-label="Legend">${["prepare", "candidate", "final", "measurement"].map((kind) => html`<li><span class=${`key key-${kind}`}></span>${kind === "measurement" ? "measurement" : `${kind} build`}</li>`)}<li>thin line: it waited; red: it failed; drag to move, Ctrl and wheel to zoom, double-click to see all</li></ul><//>
    <${Card} title="Where the time went"><dl class="stats">${sums.map((one) => html`<${Stat} label=${one.kind === "measurement" ? "Measurements" : `Builds: ${one.kind}`} note=${`${one.count} done, waited ${duration(one.waited)} in all`}>${duration(one.worked)}<//>`)}</dl>
      ${job.report.stages_s ? html`<h3>Stages</h3><dl class="pairs">${Object.entries(job.report.stages_s).sort((a, b) => b[1] - a[1]).map(([name, seconds]) => html`<div><dt class="mono">${name}</dt><dd>${duration(seconds)}</dd></div>`)}</dl>` : html`<p class="soft">Seconds a stage are told when the job ends.</p>`}<//>`;
}

function Chart({ job, data, palette }) {
  const end = Math.max(...data.spans.map((span) => span.finished_s ?? (span.state === "leased" ? data.now_s : span.asked_s)), 1);
  const box = useChart(timelineChart, {
    palette, lanes: lanesOf(data.spans), end,
    describe: (span) => [
      `${span.kind === "measurement" ? "Measurement" : `${span.kind} build`}${span.trials.length ? `, trial ${span.trials.slice(0, 4).join(", ")}` : ", dense model"}`,
      `${span.state}${span.finished_s !== null && span.started_s !== null ? ` in ${duration(span.finished_s - span.started_s)}` : ""}, attempt ${span.attempt}`,
      `waited ${duration((span.started_s ?? data.now_s) - span.asked_s)}`, ...(span.failure ? [span.failure] : []),
    ],
    onPick: (span) => span.trials.length && (location.hash = routeTo(["jobs", job.id, "trials", String(span.trials[0])])),
  });
  return html`<div class="chart" ref=${box} role="img" aria-label=${`${data.spans.length} builds and measurements over ${duration(end)}`}></div>`;
}

export const TABS = { timeline: Timeline };
