import { html, useEffect, useState } from "../../vendor/preact.js";
import { get, getIfChanged } from "../api.js";
import { digits, interval, ms, percent, times } from "../format.js";
import { useData, usePalette, useTitle } from "../hooks.js";
import { Card, Empty, Loading, Table, Trouble } from "../parts.js";
import { routeTo } from "../route.js";
import { FrontPlot, seriesOf } from "./job-front.js";
import { targetName } from "./job.js";

const EVERY_MS = 5000;

export default function Compare({ route }) {
  useTitle("Compare");
  const palette = usePalette();
  const ids = [...new Set(route.query.getAll("job"))];
  const { data: list } = useData("/v1/job_summaries?page_size=100", 10000);
  const [shown, setShown] = useState({ rows: null, error: null });
  const key = ids.join();
  useEffect(() => {
    let isOver = false;
    let timer = 0;
    const load = async () => {
      try {
        const jobs = await Promise.all(ids.map((id) => get(`/v1/jobs/${id}`)));
        const rows = (await Promise.all(jobs.flatMap((job) => job.spec.targets.map(async (target, index) => ({ job, target, index, front: await getIfChanged(`/v1/jobs/${job.id}/front?target=${index}`) })))));
        if (!isOver) setShown({ rows, error: null });
      } catch (error) {
        if (!isOver) setShown((before) => ({ ...before, error }));
      }
      if (!isOver) timer = setTimeout(load, EVERY_MS);
    };
    setShown({ rows: null, error: null });
    if (ids.length) load();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [key]);
  const change = (next) => { location.hash = routeTo(["compare"], { job: next }); };
  const others = (list?.items || []).filter((job) => !ids.includes(job.id));
  const names = new Map((list?.items || []).map((job) => [job.id, job.name || job.id]));
  return html`<div class="head"><h1>Compare</h1></div>
    <div class="filters">${ids.map((id) => html`<button type="button" class="chip" aria-pressed="true" aria-label=${`Take away ${names.get(id) || id}`} onClick=${() => change(ids.filter((one) => one !== id))}>${names.get(id) || id} ✕</button>`)}
      <label for="add" class="unseen">Add a job</label><select id="add" onChange=${(event) => event.target.value && change([...ids, event.target.value])}><option value="">Add a job…</option>${others.map((job) => html`<option value=${job.id}>${job.name || job.id} (${job.state.toLowerCase()})</option>`)}</select></div>
    <${Trouble} error=${shown.error} />
    ${!ids.length ? html`<${Empty} title="Choose jobs to lay over one another."><p>Two runs of one model, or one job with several devices: every target is a line of its own.</p><//>`
      : !shown.rows ? html`<${Loading} what="the fronts" />` : html`<${Overlay} rows=${shown.rows} palette=${palette} />`}`;
}

function Overlay({ rows, palette }) {
  const measured = rows.filter((row) => row.front.dense.length);
  const [isRatio, setRatio] = useState(false);
  if (!measured.length) return html`<${Empty} title="None of these has measured anything yet."><//>`;
  const series = measured.map((row, index) => {
    const one = seriesOf(row.front, null, { name: nameOf(row, rows), color: palette.series[index % palette.series.length], jobId: row.job.id });
    return isRatio ? asRatio(one) : one;
  });
  const drop = Math.max(...measured.map((row) => row.job.spec.objective.max_drop));
  return html`<${Card} title="Fronts on one plot" actions=${html`<label class="inline-label"><input type="checkbox" checked=${isRatio} onChange=${() => setRatio(!isRatio)} />as a share of each dense latency</label>`}>
      <${FrontPlot} series=${series} palette=${palette} maxDrop=${drop} metric="Accuracy" onPick=${(number, from) => { location.hash = routeTo(["jobs", from.jobId, "trials", String(number)]); }} />
      <ul class="legend" aria-label="Legend">${series.map((one, index) => html`<li><span class=${`key key-s${(index % 6) + 1}`}></span><a href=${routeTo(["jobs", one.jobId])}>${one.name}</a></li>`)}<li>diamonds: dense models; bars: 95 % intervals</li></ul><//>
    <${Table} caption="The jobs" head=${["Job and target", "#Dense latency", "#Dense accuracy", "#Best within the drop", "#Its latency", "#Its accuracy", "#Points", "#Hypervolume"]}>
      ${measured.map((row) => {
        const best = row.front.items.filter((point) => point.within_max_drop).sort((a, b) => b.speedup - a.speedup)[0];
        const grown = row.job.report.hypervolume?.[String(row.index)];
        const [dense] = row.front.dense;
        return html`<tr><th scope="row"><a href=${routeTo(["jobs", row.job.id], { target: row.index || "" })}>${nameOf(row, rows)}</a><span class="note">${targetName(row.target)}</span></th>
          <td class="num">${ms(dense.latency_ms)}</td><td class="num">${percent(dense.accuracy ?? dense.accuracy_search, 2)}</td>
          <td class="num">${best ? html`<strong>${times(best.speedup)}</strong> <span class="soft">${interval(...best.speedup_ci)}</span>` : "none yet"}</td><td class="num">${ms(best?.latency_ms)}</td><td class="num">${percent(best?.accuracy ?? best?.accuracy_search, 2)}</td>
          <td class="num">${row.front.items.length}</td><td class="num">${grown?.length ? digits(grown.at(-1), 3) : "–"}</td></tr>`;
      })}<//>`;
}

function nameOf(row, rows) {
  const name = row.job.name || row.job.id;
  const isTwice = rows.some((other) => other.job.id !== row.job.id && (other.job.name || other.job.id) === name);
  const own = isTwice ? `${name} (${row.job.id.slice(-6)})` : name;
  return row.job.spec.targets.length > 1 ? `${own}, target ${row.index}` : own;
}

function asRatio(series) {
  const by = series.dense[0].latency;
  const share = (point) => ({ ...point, latency: point.latency / by, low: point.low / by, high: point.high / by });
  return { ...series, points: series.points.map(share), dense: series.dense.map(share) };
}
