import { html, useState } from "../../vendor/preact.js";
import { lineChart } from "../charts/lines.js";
import { ago, bytes, digits, moment, NONE } from "../format.js";
import { post, request, session } from "../api.js";
import { useChart, useData, useNow, usePalette, useTitle } from "../hooks.js";
import { Act, Badge, Card, Conditions, Empty, Loading, Stat, Table, Trouble } from "../parts.js";
import { clockOf, stateOf, temperatureOf } from "./devices.js";
import { routeTo } from "../route.js";

export default function DevicePage({ deviceId }) {
  const device = useData(`/v1/devices/${deviceId}`, 2000);
  const health = useData(`/v1/devices/${deviceId}/health?page_size=200`, 10000);
  const [problem, setProblem] = useState(null);
  const [note, setNote] = useState("");
  const now = useNow(1000);
  useTitle(device.data?.name || "Device");
  if (!device.data) return device.error ? html`<${Trouble} error=${device.error} again=${device.reload} /><p><a href="#/devices">All devices</a></p>` : html`<${Loading} what="the device" />`;
  const data = device.data;
  const say = (verb) => () => post(`/v1/devices/${deviceId}/${verb}`, note ? { note } : {});
  const common = { onDone: () => { setNote(""); device.reload(); }, onProblem: setProblem };
  const gone = data.state === "removed";
  return html`<p class="crumbs"><a href="#/devices">Devices</a> / <span class="mono">${deviceId}</span></p>
    <div class="head"><div><h1>${data.name}</h1><p class="actions"><${Badge} state=${stateOf(data)} />${Object.entries(data.labels).map(([key, value]) => html`<code class="tag">${key}=${value}</code>`)}</p></div>
      ${gone || !session.can("admin") ? null : html`<div class="actions"><label class="unseen" for="note">Note</label><input id="note" value=${note} onInput=${(event) => setNote(event.target.value)} placeholder="note for others (optional)" maxlength="500" />
        ${data.state === "active" ? html`<${Act} label="Pause" run=${say("pause")} title="Take no new measurements; the running one goes on" ...${common} /><${Act} label="Drain" run=${say("drain")} title="Finish the running measurement, then leave" ...${common} />`
          : html`<${Act} label="Resume" tone="primary" run=${say("resume")} title="Take measurements again; also ends a quarantine" ...${common} />`}
        <${Act} label="Remove" tone="danger" confirm=${`Remove ${data.name}? Its tokens end now; its measurements stay.`} run=${() => request(`/v1/devices/${deviceId}`, { method: "DELETE" })} ...${common} /></div>`}</div>
    <${Trouble} error=${problem} />
    ${data.note ? html`<div class=${`trouble ${data.state === "quarantined" ? "" : "warning"}`}><p>${data.state === "quarantined" ? html`<strong>Quarantined.</strong> ` : null}${data.note}</p>
      ${data.state === "quarantined" ? html`<p>It checks its golden model again by itself. Mend what the reason names, then press Resume.</p>` : null}</div>` : null}
    ${Object.entries(data.lost_runtimes).map(([name, lost]) => html`<div class="trouble"><p><strong>${name} takes no work.</strong> ${lost.reason}</p></div>`)}
    ${!gone && !data.is_online ? html`<div class="trouble warning"><p>Not heard of for ${ago(data.last_seen_at, now).replace(" ago", "")}. On the device: <code>pruneloop agent run</code>, or <code>pruneloop agent doctor</code> to see what is wrong.</p></div>` : null}
    <section class="card" aria-label="In figures"><dl class="stats">
      <${Stat} label="Measures now" note=${`${data.queue_depth} wait for it`}>${data.current_measurement_id ? html`<${Current} id=${data.current_measurement_id} />` : "nothing"}<//>
      <${Stat} label="Temperature">${temperatureOf(data.conditions)}<//>
      <${Stat} label="Clock">${clockOf(data.conditions)}<//>
      <${Stat} label="Load" note=${`${data.inventory.cores} cores`}>${typeof data.conditions.load_1m === "number" ? data.conditions.load_1m.toFixed(1) : NONE}<//>
      <${Stat} label="Heard of" note=${data.clock_offset_ms !== null ? `its clock is off by ${digits(data.clock_offset_ms, 2)} ms` : null}>${ago(data.last_seen_at, now)}<//>
    </dl></section>
    <${Health} health=${health} />
    <div class="grid"><${Card} title="Conditions, as it sent them last"><${Conditions} values=${data.conditions} /><//>
    <${Card} title="What it is"><${Conditions} values=${{ cpu: data.inventory.cpu, cores: data.inventory.cores, machine: data.inventory.machine, memory: bytes(data.inventory.memory_bytes), os: data.inventory.os, kernel: data.inventory.kernel, python: data.inventory.python, agent: data.inventory.agent_version, joined: moment(data.created_at) }} /><//></div>
    <${Card} title="Runtimes"><${Table} caption="Runtimes" head=${["Runtime", "", "Version", "Formats", "Precisions", "Detail"]}>
      ${[...data.inventory.runtimes].sort((a, b) => b.available - a.available).map((one) => html`<tr><th scope="row">${one.name}</th><td><${Badge} state=${one.available ? "done" : "removed"}>${one.available ? "works" : "not here"}<//></td><td>${one.version || NONE}</td><td>${one.formats.join(", ")}</td><td>${one.precisions.join(", ")}</td><td class="soft">${one.detail}</td></tr>`)}<//><//>`;
}

function Current({ id }) {
  const { data } = useData(`/v1/measurements/${id}`);
  return data ? html`<a href=${routeTo(["jobs", data.job_id], { tab: "timeline" })}>${data.request.runtime}, ${data.request.candidates.length} file${data.request.candidates.length > 1 ? "s" : ""}</a>` : html`<span class="mono">${id.slice(-8)}</span>`;
}

function Health({ health }) {
  const palette = usePalette();
  const items = [...(health.data?.items || [])].reverse();
  const runtimes = [...new Set(items.map((one) => one.check.runtime))];
  const [chosen, setChosen] = useState(null);
  const runtime = chosen && runtimes.includes(chosen) ? chosen : runtimes[0];
  const timed = items.filter((one) => one.check.runtime === runtime && one.check.timing);
  return html`<${Card} title="Health: golden ratio over time" actions=${runtimes.length > 1 ? html`<label for="runtime" class="unseen">Runtime</label><select id="runtime" onChange=${(event) => setChosen(event.target.value)}>${runtimes.map((name) => html`<option value=${name} selected=${name === runtime}>${name}</option>`)}</select>` : null}>
    <${Trouble} error=${health.error?.status ? health.error : null} again=${health.reload} />
    ${timed.length ? html`<${Golden} key=${runtime} timed=${timed} palette=${palette} />
      <p class="hint">A fixed model timed against a second fixed one: what disturbs both alike cancels, so a busy machine does not look like a sick one. The band is median ± 3 MAD of its own good checks, at least 5 %.</p>`
      : html`<${Empty} title="No health check yet."><p>The device checks itself when its agent starts, and every so often.</p><//>`}
    ${items.length ? html`<details><summary>${items.length} checks</summary><${Table} caption="Health checks" head=${["When", "Verdict", "Runtime", "Why", "Asked by"]}>
      ${[...items].reverse().map((one) => html`<tr key=${one.id}><td>${moment(one.at)}</td><td><${Badge} state=${one.verdict} /></td><td>${one.check.runtime}</td><td>${one.reason}</td><td>${one.check.trigger}</td></tr>`)}<//></details>` : null}<//>`;
}

function Golden({ timed, palette }) {
  const start = Date.parse(timed[0].at);
  const box = useChart(lineChart, {
    palette, height: 240, x: timed.map((one) => (Date.parse(one.at) - start) / 3600e3), xLabel: `Hours since ${moment(timed[0].at)}`, yLabel: "Golden ratio",
    yValues: (u, values) => values.map((value) => value.toFixed(3)),
    series: [
      { label: "band high", values: timed.map((one) => one.band?.[1] ?? null), color: palette.good, width: 1, dash: [4, 4] },
      { label: "band low", values: timed.map((one) => one.band?.[0] ?? null), color: palette.good, width: 1, dash: [4, 4] },
      { label: "good", values: timed.map((one) => (["passed", "learning"].includes(one.verdict) ? one.check.timing.ratio : null)), color: palette.accent, isDots: true, size: 7 },
      { label: "out", values: timed.map((one) => (["passed", "learning"].includes(one.verdict) ? null : one.check.timing.ratio)), color: palette.bad, isDots: true, size: 9 },
    ],
    describe: (index) => [`ratio ${timed[index].check.timing.ratio.toFixed(4)}: ${timed[index].verdict.replaceAll("_", " ")}`, timed[index].band ? `band ${timed[index].band.map((end) => end.toFixed(3)).join(" to ")}` : "still learning its band", `golden ${digits(timed[index].check.timing.latency_ms, 3)} ms`, moment(timed[index].at)],
  });
  return html`<div class="chart" ref=${box} role="img" aria-label=${`${timed.length} golden ratios over time, the last ${timed.at(-1).check.timing.ratio.toFixed(3)}`}></div>`;
}
