import { html, useEffect, useState } from "../../vendor/preact.js";
import { download, get } from "../api.js";
import { lineChart } from "../charts/lines.js";
import { bytes, count, digits, duration, interval, moment, ms, NONE, percent, shortDigest, times } from "../format.js";
import { useChart, useData, usePalette, useTitle } from "../hooks.js";
import { Act, Badge, Card, Conditions, Empty, Loading, Stat, Table, Trouble } from "../parts.js";
import { routeTo } from "../route.js";
import { decodeSamples, median } from "../samples.js";
import { Picture } from "./job-network.js";

export default function TrialPage({ jobId, number, route }) {
  const other = route.query.get("with");
  const detail = useData(`/v1/jobs/${jobId}/trials/${number}`, 0);
  const compared = useData(other === null ? null : `/v1/jobs/${jobId}/trials/${other}`, 0);
  const job = useData(`/v1/jobs/${jobId}`, 0);
  const target = detail.data?.trial.target;
  const columns = useData(target === undefined ? null : `/v1/jobs/${jobId}/trial_columns?target=${target}`, 0);
  const isOpen = detail.data && ["building", "measuring"].includes(detail.data.trial.state);
  useEffect(() => {
    if (!isOpen) return undefined;
    const timer = setInterval(detail.reload, 2000);
    return () => clearInterval(timer);
  }, [isOpen, detail.reload]);
  useTitle(`Trial ${number}`);
  if (!detail.data) return detail.error ? html`<${Trouble} error=${detail.error} again=${detail.reload} /><p><a href=${routeTo(["jobs", jobId])}>Back to the job</a></p>` : html`<${Loading} what="the trial" />`;
  const { trial, builds, measurements } = detail.data;
  const built = resultOf(builds);
  const best = measurements.filter((one) => one.measurement.outcome?.status === "measured").at(-1);
  const timing = best?.measurement.outcome.candidates[best.position];
  const place = columns.data?.number.indexOf(number);
  const numbers = columns.data?.number || [];
  const at = numbers.indexOf(number);
  return html`<p class="crumbs"><a href="#/jobs">Jobs</a> / <a href=${routeTo(["jobs", jobId], { target: target || "" })}>${job.data?.name || jobId}</a> / trial ${number}</p>
    <div class="head"><div><h1>Trial ${number}</h1><p class="actions"><${Badge} state=${trial.state} /><span class="soft">target ${trial.target}, ${trial.candidate.precision}${trial.seed_name ? `, seed ${trial.seed_name}` : ", proposed by the sampler"}</span></p></div>
      <div class="actions">${at > 0 ? html`<a class="button" href=${routeTo(["jobs", jobId, "trials", String(numbers[at - 1])])}>Previous</a>` : null}${at >= 0 && at < numbers.length - 1 ? html`<a class="button" href=${routeTo(["jobs", jobId, "trials", String(numbers[at + 1])])}>Next</a>` : null}
      <label for="with" class="unseen">Compare with</label><select id="with" onChange=${(event) => { location.hash = routeTo(["jobs", jobId, "trials", String(number)], { with: event.target.value }); }}>
        <option value="">Compare with…</option>${numbers.filter((one) => one !== number).map((one) => html`<option value=${one} selected=${String(one) === other}>trial ${one}</option>`)}</select></div></div>
    ${trial.reason ? html`<div class="trouble warning"><p>${trial.reason}</p></div>` : null}
    ${trial.duplicate_of !== null ? html`<p>The same network as <a href=${routeTo(["jobs", jobId, "trials", String(trial.duplicate_of)])}>trial ${trial.duplicate_of}</a>; what follows is that one's.</p>` : null}
    <section class="card" aria-label="In figures"><dl class="stats">
      <${Stat} label="Speed-up" note=${timing ? `${interval(...timing.speedup_ci)}, ${timing.verdict}` : "not measured"}>${times(timing?.speedup)}<//>
      <${Stat} label="Latency, measured" note=${timing ? interval(...timing.latency_ci_ms, " ms") : null}>${ms(timing?.latency_ms)}<//>
      <${Stat} label="Latency, predicted" note="by the model as it is now">${ms(detail.data.predicted_ms)}<//>
      <${Stat} label="Accuracy" note=${built?.accuracy.test !== null && built?.accuracy.test !== undefined ? `test split, ${built.accuracy.test_samples} samples; search ${percent(built.accuracy.search, 2)}` : "search split"}>${percent(built?.accuracy.test ?? built?.accuracy.search, 2)}<//>
      <${Stat} label="MACs">${count(built?.macs)}<//><${Stat} label="Parameters">${count(built?.params)}<//></dl></section>
    ${other !== null && compared.data ? html`<${Versus} one=${detail.data} two=${compared.data} columns=${columns.data} />` : null}
    <${Trouble} error=${compared.error} />
    ${measurements.length ? measurements.map((one) => html`<${Samples} key=${one.measurement.id} one=${one} />`) : html`<${Card} title="Latency"><${Empty} title="Not measured."><p>${trial.reason || "It is still being built, or waits for its device."}</p><//><//>`}
    ${columns.data && place >= 0 && columns.data.groups.length ? html`<${Card} title="Candidate"><${Picture} columns=${columns.data} index=${place} account=${job.data?.report.why?.[String(target)]?.trials?.[String(number)]} fixed=${job.data?.report.why?.[String(target)]?.fixed_ms} /><//>` : null}
    <div class="grid"><${Stages} builds=${builds} measurements=${measurements} /><${Files} builds=${builds} number=${number} /></div>
    <${Card} title="Proposed by"><dl class="pairs">${Object.entries(trial.params).map(([name, value]) => html`<div><dt class="mono">${name}</dt><dd>${typeof value === "number" ? digits(value, 4) : String(value)}</dd></div>`)}</dl><p class="hint">The sampler's own parameters; the request of the build holds importance ${JSON.stringify(trial.candidate.importance)}.</p><//>`;
}

function resultOf(builds) {
  return builds.map((build) => build.outcome).filter((outcome) => outcome?.status === "built").at(-1);
}

/** Raw samples of one measurement in the order they were timed: the dense model and the candidate of each pair above one another. */
function Samples({ one }) {
  const { measurement, position, stage } = one;
  const palette = usePalette();
  const [samples, setSamples] = useState(null);
  const [problem, setProblem] = useState(null);
  const outcome = measurement.outcome;
  const isMeasured = outcome?.status === "measured";
  useEffect(() => {
    if (!isMeasured) return;
    get(`/v1/measurements/${measurement.id}`).then(async (whole) => {
      const raw = whole.outcome.candidates[position].samples;
      setSamples(raw ? await decodeSamples(raw) : { baseline: [], candidate: [], start: [] });
    }).catch(setProblem);
  }, [measurement.id]);
  const title = stage === "final" ? "Latency, as a final" : "Latency, in the search";
  if (!isMeasured) {
    return html`<${Card} title=${title}>${outcome ? html`<div class="trouble"><p>${outcome.reason}</p><p class="soft">In ${outcome.stage}; to blame: ${outcome.blame}.</p></div>` : html`<p class="soft">${measurement.state === "leased" ? "It is being measured now." : "It waits for its device."}</p>`}<//>`;
  }
  const timing = outcome.candidates[position];
  return html`<${Card} title=${title} actions=${html`<span class="soft">${moment(measurement.finished_at)}</span>${measurement.is_suspect ? html`<${Badge} state="failed">suspect<//>` : null}${timing.is_noisy ? html`<${Badge} state="paused">noisy<//>` : null}`}>
    <${Trouble} error=${problem} />
    ${samples?.start.length ? html`<${Pairs} samples=${samples} palette=${palette} />` : samples ? html`<p class="soft">No raw samples are kept of it.</p>` : html`<${Loading} what="the samples" />`}
    <${Table} caption="Figures of both files" head=${["", "#Latency", "#Alone, median", "#p90", "#p99", "#First run", "#Load", "#Peak memory", "#Energy a run"]}>
      <tr><th scope="row">Candidate</th><td class="num">${ms(timing.latency_ms)}</td><${Times} timing=${timing.timing} /></tr>
      <tr><th scope="row">Dense</th><td class="num">${ms(outcome.baseline.latency_ms)}</td><${Times} timing=${outcome.baseline} /></tr><//>
    <p>${times(timing.speedup)} [${interval(...timing.speedup_ci)}] over ${timing.pairs} pairs${timing.discarded_pairs ? `, ${timing.discarded_pairs} more discarded` : ""}. ${timing.unmet ? html`<span class="soft">${timing.unmet}</span>` : null}</p>
    ${outcome.warnings.map((warning) => html`<p class="soft">${warning}</p>`)}
    <details open><summary>Conditions</summary><${Conditions} values=${outcome.conditions} /></details><//>`;
}

function Times({ timing }) {
  return html`<td class="num">${ms(timing.latency_ms)}</td><td class="num">${ms(timing.p90_ms)}</td><td class="num">${ms(timing.p99_ms)}</td><td class="num">${ms(timing.first_ms)}</td><td class="num">${ms(timing.load_ms)}</td><td class="num">${bytes(timing.peak_memory_bytes)}</td><td class="num">${timing.energy_mj === null ? NONE : `${digits(timing.energy_mj, 3)} mJ`}</td>`;
}

function Pairs({ samples, palette }) {
  const order = samples.start.map((_, index) => index + 1);
  const ratios = samples.baseline.map((value, index) => value / samples.candidate[index]);
  const middle = median(ratios);
  const common = { palette, x: order, xLabel: "Pair, in the order timed" };
  const times3 = useChart(lineChart, {
    ...common, height: 240, yLabel: "Block, ms a run", yValues: (u, values) => values.map((value) => digits(value, 3)),
    series: [{ label: "dense", values: samples.baseline, color: palette.dense, isDots: true }, { label: "candidate", values: samples.candidate, color: palette.accent, isDots: true }],
    describe: (index) => [`Pair ${index + 1}, ${samples.start[index].toFixed(2)} s in`, `dense ${ms(samples.baseline[index])}, candidate ${ms(samples.candidate[index])}`, `ratio ${ratios[index].toFixed(3)}`],
  });
  const ratio = useChart(lineChart, {
    ...common, height: 170, yLabel: "Ratio of the pair", yValues: (u, values) => values.map((value) => value.toFixed(2)),
    series: [{ label: "median", values: ratios.map(() => middle), color: palette.soft, width: 1, dash: [5, 4] }, { label: "ratio", values: ratios, color: palette.int8, isDots: true, size: 4 }],
    describe: (index) => [`Pair ${index + 1}: ${ratios[index].toFixed(3)}×`, `median ${middle.toFixed(3)}×`],
  });
  return html`<div class="chart" ref=${times3} role="img" aria-label=${`${order.length} pairs of blocks: dense ${ms(median(samples.baseline))}, candidate ${ms(median(samples.candidate))}`}></div>
    <div class="chart" ref=${ratio} role="img" aria-label=${`Ratio of each pair, median ${middle.toFixed(3)}`}></div>
    <ul class="legend" aria-label="Legend"><li><span class="key key-dense"></span>dense model</li><li><span class="key key-candidate"></span>candidate</li><li>a pair is one block of each, next to each other: what disturbs both cancels in their ratio</li></ul>`;
}

function Stages({ builds, measurements }) {
  const rows = [];
  for (const build of builds) {
    const kind = build.request.kind;
    for (const [stage, seconds] of Object.entries(build.outcome?.stages_s || {})) rows.push([`${kind} build: ${stage}`, seconds]);
    if (build.outcome?.status === "failed") rows.push([`${kind} build failed in ${build.outcome.stage}: ${build.outcome.reason}`, null]);
  }
  for (const { measurement, stage } of measurements) for (const [name, seconds] of Object.entries(measurement.outcome?.stages_s || {})) rows.push([`measured (${stage}): ${name}`, seconds]);
  const most = Math.max(0.001, ...rows.map(([, seconds]) => seconds || 0));
  return html`<${Card} title="Stages">${rows.length ? html`<div class="shares">${rows.map(([name, seconds]) => html`<div><span title=${name} class="clip">${name}</span><span class="track" aria-hidden="true"><span style=${{ inlineSize: `${((seconds || 0) / most) * 100}%` }}></span></span><span class="num">${duration(seconds)}</span></div>`)}</div>` : html`<p class="soft">Nothing is finished yet.</p>`}<//>`;
}

function Files({ builds, number }) {
  const [problem, setProblem] = useState(null);
  const files = builds.flatMap((build) => (build.outcome?.artifacts || []).map((made) => ({ ...made, kind: build.request.kind })));
  return html`<${Card} title="Files"><${Trouble} error=${problem} />${files.length ? html`<${Table} caption="Files" head=${["Of", "Format", "#Size", "sha256", ""]}>
    ${files.map((made) => html`<tr><th scope="row">${made.kind}</th><td>${made.format}, ${made.precision}</td><td class="num">${bytes(made.artifact.size_bytes)}</td><td><code title=${made.artifact.digest}>${shortDigest(made.artifact.digest)}…</code></td>
      <td><${Act} label="Download" tone="small" onProblem=${setProblem} run=${() => download(made.artifact.digest, `trial-${String(number).padStart(3, "0")}-${made.kind}.${made.format}`)} /></td></tr>`)}<//>` : html`<p class="soft">None yet.</p>`}<//>`;
}

function figuresOf(detail) {
  const built = resultOf(detail.builds);
  const best = detail.measurements.filter((one) => one.measurement.outcome?.status === "measured").at(-1);
  const timing = best?.measurement.outcome.candidates[best.position];
  return { built, timing };
}

function Versus({ one, two }) {
  const [a, b] = [figuresOf(one), figuresOf(two)];
  const rows = [
    ["Speed-up", (x) => (x.timing ? `${times(x.timing.speedup)} [${interval(...x.timing.speedup_ci)}]` : NONE)],
    ["Latency", (x) => ms(x.timing?.latency_ms)], ["Accuracy", (x) => percent(x.built?.accuracy.test ?? x.built?.accuracy.search, 2)],
    ["MACs", (x) => count(x.built?.macs)], ["Parameters", (x) => count(x.built?.params)],
  ];
  const isTie = a.timing && b.timing && a.timing.speedup_ci[0] <= b.timing.speedup_ci[1] && b.timing.speedup_ci[0] <= a.timing.speedup_ci[1];
  const differ = one.groups.filter((group) => (one.trial.candidate.widths[group.name] ?? group.channels) !== (two.trial.candidate.widths[group.name] ?? group.channels));
  return html`<${Card} title=${`Against trial ${two.trial.number}`}>
    ${isTie ? html`<p><strong>A tie in speed:</strong> their intervals overlap.</p>` : null}
    <${Table} caption="Comparison" head=${["", `Trial ${one.trial.number}`, `Trial ${two.trial.number}`]}>${rows.map(([name, read]) => html`<tr><th scope="row">${name}</th><td>${read(a)}</td><td>${read(b)}</td></tr>`)}
      <tr><th scope="row">Precision</th><td>${one.trial.candidate.precision}</td><td>${two.trial.candidate.precision}</td></tr>
      <tr><th scope="row">Blocks gone</th><td>${one.trial.candidate.dropped.join(", ") || "none"}</td><td>${two.trial.candidate.dropped.join(", ") || "none"}</td></tr>
      ${differ.map((group) => html`<tr><th scope="row" class="mono">${group.name}</th><td>${one.trial.candidate.widths[group.name]} of ${group.channels}</td><td>${two.trial.candidate.widths[group.name]} of ${group.channels}</td></tr>`)}<//>
    ${differ.length ? null : html`<p class="soft">The same widths everywhere.</p>`}<//>`;
}
