import { html, useEffect, useState } from "../../vendor/preact.js";
import { get, post, request, send } from "../api.js";
import { count, duration, NONE } from "../format.js";
import { useData, useTitle } from "../hooks.js";
import { Badge, Card, Loading, Stat, Table, Trouble } from "../parts.js";
import { routeTo } from "../route.js";
import { fromSpec, START, toSpec } from "../spec.js";
import { stateOf } from "./devices.js";

export default function Submit({ route }) {
  useTitle("New job");
  const from = route.query.get("from");
  const [form, setForm] = useState(null);
  const [json, setJson] = useState(null);
  const [plan, setPlan] = useState(null);
  const [problem, setProblem] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const can = useData("/v1/capabilities");
  const devices = useData("/v1/devices?page_size=500", 5000);
  useEffect(() => {
    if (!from) return setForm(START);
    get(`/v1/jobs/${from}`).then((job) => setForm(fromSpec({ ...job.spec, name: job.spec.name ? `${job.spec.name} (again)` : "" })), (refused) => {
      setProblem(refused);
      setForm(START);
    });
  }, [from]);
  if (!form || !can.data) return html`<${Trouble} error=${can.error} again=${can.reload} /><${Loading} what="what can be asked here" />`;
  const change = (changes) => {
    setForm({ ...form, ...changes });
    setPlan(null);
  };
  const read = () => (json === null ? toSpec(form) : JSON.parse(json));
  const attempt = async (work) => {
    setBusy(true);
    setProblem(null);
    try {
      await work();
    } catch (refused) {
      setProblem(refused instanceof SyntaxError ? new Error(`This is not JSON: ${refused.message}`) : refused);
    } finally {
      setBusy(false);
    }
  };
  const check = (event) => {
    event.preventDefault();
    attempt(async () => setPlan(await post("/v1/jobs?validate_only=true", read())));
  };
  const submit = () => attempt(async () => {
    const job = await request("/v1/jobs", { method: "POST", json: read(), headers: { "Idempotency-Key": plan.key ||= keyFor() } });
    location.hash = routeTo(["jobs", job.id]);
  });
  const asText = () => {
    setJson(json === null ? JSON.stringify(toSpec(form), null, 2) : null);
    setPlan(null);
    if (json !== null) attempt(async () => setForm(fromSpec(JSON.parse(json))));
  };
  return html`<p class="crumbs"><a href="#/jobs">Jobs</a> / ${from ? "clone" : "new"}</p>
    <div class="head"><h1>${from ? "Submit it again" : "New job"}</h1><button type="button" onClick=${asText}>${json === null ? "Edit as JSON" : "Back to the form"}</button></div>
    <form onSubmit=${check}>
      ${json !== null ? html`<${Card} title="The request"><label class="unseen" for="json">Request as JSON</label><textarea id="json" class="wide mono" spellcheck="false" value=${json} onInput=${(event) => { setJson(event.target.value); setPlan(null); }}></textarea><//>`
        : html`<${Fields} form=${form} change=${change} can=${can.data} devices=${devices.data?.items || []} setProblem=${setProblem} />`}
      <${Trouble} error=${problem} />
      <div class="actions"><button type="submit" class=${plan ? "" : "primary"} disabled=${isBusy}>${isBusy && !plan ? "Checking…" : "Check"}</button>
        <span class="soft">Nothing is stored yet: the check tells what the job would do.</span></div>
    </form>
    ${plan ? html`<${Plan} plan=${plan} submit=${submit} isBusy=${isBusy} />` : null}`;
}

const keyFor = () => `page-${[...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16)).join("")}`;

function Text({ id, label, hint, ...rest }) {
  return html`<div><label for=${id}>${label}</label><input id=${id} ...${rest} />${hint ? html`<p class="hint">${hint}</p>` : null}</div>`;
}

function Choice({ id, label, options, value, onChange, hint }) {
  const known = options.some(([name]) => name === value) ? options : [[value, value], ...options];
  return html`<div><label for=${id}>${label}</label><select id=${id} onChange=${(event) => onChange(event.target.value)}>${known.map(([name, text]) => html`<option value=${name} selected=${name === value}>${text}</option>`)}</select>${hint ? html`<p class="hint">${hint}</p>` : null}</div>`;
}

function Fields({ form, change, can, devices, setProblem }) {
  const bind = (name) => ({ value: form[name], onInput: (event) => change({ [name]: event.target.value }) });
  const upload = async (event, name, kind) => {
    const [file] = event.target.files;
    if (!file) return;
    try {
      const stored = await (await send(`/v1/artifacts?kind=${kind}`, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } })).json();
      change({ [name]: stored.digest });
      setProblem(null);
    } catch (refused) {
      setProblem(refused);
    }
  };
  return html`
    <${Card} title="Model and data"><div class="form">
      <${Text} id="name" label="Name" maxlength="200" placeholder="for people" ...${bind("name")} />
      <${Choice} id="model-source" label="Model from" value=${form.modelSource} onChange=${(value) => change({ modelSource: value })} options=${[["builtin", "built in"], ["plugin", "a plug-in"], ["onnx", "an ONNX file"]]} />
      ${form.modelSource === "onnx" ? html`<div><label for="model-file">ONNX file</label><input id="model-file" type="file" accept=".onnx" onChange=${(event) => upload(event, "modelArtifact", "onnx")} /><p class="hint">${form.modelArtifact ? html`stored as <code>${form.modelArtifact.slice(0, 19)}…</code>` : "uploaded to this server only"}</p></div>`
        : can.models.length ? html`<${Choice} id="model-name" label="Model" value=${form.modelName} onChange=${(value) => change({ modelName: value })} options=${can.models.map((name) => [name, name])} />` : html`<${Text} id="model-name" label="Model" required ...${bind("modelName")} />`}
      ${form.modelSource === "onnx" ? null : html`<${Text} id="model-params" label="Its parameters" placeholder='{"width": 16}' hint="JSON; empty: its defaults" ...${bind("modelParams")} />`}
      <${Choice} id="data-source" label="Data from" value=${form.dataSource} onChange=${(value) => change({ dataSource: value })} options=${[["builtin", "built in"], ["plugin", "a plug-in"], ["npz", "an npz file"]]} />
      ${form.dataSource === "npz" ? html`<div><label for="data-file">npz file</label><input id="data-file" type="file" accept=".npz" onChange=${(event) => upload(event, "dataArtifact", "data")} /><p class="hint">${form.dataArtifact ? html`stored as <code>${form.dataArtifact.slice(0, 19)}…</code>` : "train_inputs, train_labels, …"}</p></div>`
        : can.datasets.length ? html`<${Choice} id="data-name" label="Data" value=${form.dataName} onChange=${(value) => change({ dataName: value })} options=${can.datasets.map((name) => [name, name])} />` : html`<${Text} id="data-name" label="Data" required ...${bind("dataName")} />`}
    </div><//>
    ${form.targets.map((target, index) => html`<${Target} key=${index} index=${index} target=${target} can=${can} devices=${devices} isOnly=${form.targets.length === 1}
      change=${(changes) => change({ targets: form.targets.map((one, place) => (place === index ? { ...one, ...changes } : one)) })}
      remove=${() => change({ targets: form.targets.filter((_, place) => place !== index) })} />`)}
    <p><button type="button" onClick=${() => change({ targets: [...form.targets, { ...form.targets.at(-1) }] })}>Another target</button></p>
    <${Card} title="What counts, and how long"><div class="form">
      <${Choice} id="metric" label="Metric" value=${form.metric} onChange=${(value) => change({ metric: value })} options=${can.metrics.map((name) => [name, name])} />
      <${Text} id="max-drop" label="May be lost, %" type="number" min="0" max="100" step="any" ...${bind("maxDropPercent")} />
      <${Text} id="trials" label="Trials at most" type="number" min="1" ...${bind("trials")} />
      <${Text} id="wall" label="Time at most, minutes" type="number" min="0.1" step="any" ...${bind("wallMinutes")} />
      <${Text} id="epochs" label="Recovery, epochs" type="number" min="0" step="any" ...${bind("epochs")} hint="short, of every trial" />
      <${Text} id="keep" label="Finals kept" type="number" min="1" max="100" ...${bind("keep")} hint="recovered long at the end" />
      <${Text} id="final-epochs" label="Finals' recovery, epochs" type="number" min="0" step="any" ...${bind("finalEpochs")} />
      <${Text} id="labels" label="Labels" placeholder="team=vision" ...${bind("labels")} hint="to find it by" />
    </div><//>`;
}

function Target({ index, target, can, devices, isOnly, change, remove }) {
  const toggle = (precision) => change({ precision: target.precision.includes(precision) ? target.precision.filter((one) => one !== precision) : [...target.precision, precision] });
  const there = devices.filter((device) => device.state !== "removed");
  const here = new Set(there.flatMap((device) => device.inventory.runtimes.filter((one) => one.available).map((one) => one.name)));
  return html`<${Card} title=${`Target ${index}: where it must be fast`} actions=${isOnly ? null : html`<button type="button" class="small" onClick=${remove}>Take away</button>`}><div class="form">
    <${Choice} id=${`device-${index}`} label="Device" value=${target.device} onChange=${(value) => change({ device: value })} options=${[["", "any, or by labels"], ...there.map((device) => [device.id, `${device.name} (${stateOf(device)})`])]} />
    ${target.device ? null : html`<${Text} id=${`device-labels-${index}`} label="Device labels" placeholder="class=edge" value=${target.labels} onInput=${(event) => change({ labels: event.target.value })} hint="a front of its own for every device that matches needs a target each" />`}
    <${Choice} id=${`runtime-${index}`} label="Runtime" value=${target.runtime} onChange=${(value) => change({ runtime: value })} options=${can.runtimes.map((name) => [name, here.has(name) ? name : `${name} (on no device now)`])} />
    <fieldset><legend>Precision</legend>${can.precisions.map((name) => html`<label class="inline-label"><input type="checkbox" checked=${target.precision.includes(name)} onChange=${() => toggle(name)} />${name}</label>`)}</fieldset>
    <${Text} id=${`batch-${index}`} label="Batch" type="number" min="1" value=${target.batch} onInput=${(event) => change({ batch: event.target.value })} />
    <${Text} id=${`threads-${index}`} label="Threads" type="number" min="1" value=${target.threads} onInput=${(event) => change({ threads: event.target.value })} />
    <${Text} id=${`speedup-${index}`} label="Hoped-for speed-up" type="number" min="1" step="any" placeholder="2.0" value=${target.speedup} onInput=${(event) => change({ speedup: event.target.value })} />
    <${Text} id=${`latency-${index}`} label="or latency, ms" type="number" min="0" step="any" value=${target.latencyMs} onInput=${(event) => change({ latencyMs: event.target.value })} />
  </div><//>`;
}

function Plan({ plan, submit, isBusy }) {
  const { network, cost } = plan;
  useEffect(() => document.getElementById("plan").scrollIntoView({ behavior: "smooth", block: "nearest" }), []);
  return html`<${Card} id="plan" title="What this job would do" actions=${html`<button type="button" class="primary" disabled=${isBusy} onClick=${submit}>Submit</button>`}>
    <dl class="stats">
      <${Stat} label="Trials" note=${`and ${cost.finals} finals`}>at most ${cost.trials}<//>
      <${Stat} label="Measurements">at most ${cost.measurements}<//>
      <${Stat} label="Would take" note=${cost.expected_s === null ? "nothing was built here yet" : "by what lately took how long"}>${cost.expected_s === null ? NONE : duration(cost.expected_s)}<//>
      <${Stat} label="Ends after" note="the budget, held">${duration(cost.wall_budget_s)}<//>
      <${Stat} label="In the queue" note=${cost.queue.ahead ? null : "its turn comes at once"}>${cost.queue.ahead} ahead<//>
      ${network ? html`<${Stat} label="Network" note=${`${count(network.macs)} MACs, ${count(network.params)} parameters`}>${network.groups.length} groups${network.blocks.length ? `, ${network.blocks.length} blocks` : ""}<//>` : null}
    </dl>
    ${plan.network_reason ? html`<p class="soft">${plan.network_reason}</p>` : null}
    ${plan.targets.map((one) => html`<p><strong>Target ${one.target}:</strong> ${one.devices.length ? one.devices.map((device) => html`<${Badge} state=${device.state === "active" && !device.is_online ? "offline" : device.state}>${device.name}, ${device.queue_depth} in its queue<//> `) : null} ${one.reason ? html`<span class="soft">${one.reason}</span>` : null}</p>`)}
    ${network ? html`<details><summary>${network.groups.length} groups of channels may be narrowed${network.unprunable.length ? `, ${network.unprunable.length} layers stay whole` : ""}</summary>
      <${Table} caption="Groups" head=${["Group", "Channels"]}>${network.groups.map((group) => html`<tr><th scope="row" class="mono">${group.name}</th><td>${group.channels}</td></tr>`)}<//>
      ${network.unprunable.map((one) => html`<p><code>${one.name}</code> ${one.reason}</p>`)}</details>` : null}<//>`;
}
