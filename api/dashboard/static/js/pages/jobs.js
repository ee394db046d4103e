import { html, useState } from "../../vendor/preact.js";
import { session } from "../api.js";
import { ago, duration, times } from "../format.js";
import { useData, useNow, useTitle } from "../hooks.js";
import { Badge, Bar, Empty, Loading, Trouble } from "../parts.js";
import { routeTo } from "../route.js";

const STATES = ["QUEUED", "RUNNING", "PAUSED", "STOPPING", "SUCCEEDED", "STOPPED", "CANCELLED", "FAILED"];
const PAGE = 50;
const UNCOUNTED = new Set(["building", "measuring", "duplicate"]); // trials that do not (yet) count against the budget

export default function Jobs({ route }) {
  useTitle("Jobs");
  const query = route.query;
  const states = query.getAll("state");
  const label = query.get("label") || "";
  const asked = new URLSearchParams([...states.map((state) => ["state", state]), ["page_size", String(PAGE)]]);
  if (label) asked.append("label", label);
  if (query.get("page")) asked.append("page_token", query.get("page"));
  const { data, error, reload } = useData(`/v1/job_summaries?${asked}`, 2000);
  const [chosen, setChosen] = useState(() => new Set());
  const go = (changes) => {
    location.hash = routeTo(["jobs"], { state: states, label, ...changes });
  };
  const toggle = (state) => go({ state: states.includes(state) ? states.filter((one) => one !== state) : [...states, state] });
  const pick = (id) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    setChosen(next);
  };
  const isFiltered = states.length || label;
  return html`<div class="head"><h1>Jobs</h1>
      <div class="actions">${chosen.size >= 2 ? html`<a class="button" href=${routeTo(["compare"], { job: [...chosen] })}>Compare ${chosen.size}</a>` : null}</div></div>
    <div class="filters" role="group" aria-label="Filters">
      ${STATES.map((state) => html`<button type="button" class="chip" aria-pressed=${states.includes(state)} onClick=${() => toggle(state)}>${state.toLowerCase()}</button>`)}
      <form class="inline" onSubmit=${(event) => {
        event.preventDefault();
        go({ label: new FormData(event.target).get("label").trim() });
      }}><label class="unseen" for="label">Label</label><input id="label" name="label" value=${label} placeholder="label: team=vision" /></form>
      ${isFiltered ? html`<a href="#/jobs">Clear</a>` : null}
    </div>
    <${Trouble} error=${error?.status ? error : null} again=${reload} />
    ${!data ? html`<${Loading} what="the jobs" />` : data.items.length ? html`<${List} items=${data.items} chosen=${chosen} pick=${pick} />` : html`
      <${Empty} title=${isFiltered ? "No job matches these filters." : "No job yet."}>
        ${isFiltered ? html`<p><a href="#/jobs">Show all jobs</a></p>` : html`<p>Give it a model, data and a device; it finds smaller models that are as good and faster there.</p>
          <p><a class="button primary" href="#/submit">Submit the first job</a> or <code>pruneloop submit job.yaml</code></p>`}
      <//>`}
    ${data?.next_page_token ? html`<p><a class="button" href=${routeTo(["jobs"], { state: states, label, page: data.next_page_token })}>Older jobs</a></p>` : null}
    ${query.get("page") ? html`<p><a href=${routeTo(["jobs"], { state: states, label })}>Newest jobs</a></p>` : null}`;
}

function List({ items, chosen, pick }) {
  const now = useNow(1000);
  return html`<div class="table-box" tabindex="0" role="region" aria-label="Jobs"><table class="stacks">
    <thead><tr><th scope="col"><span class="unseen">Choose to compare</span></th><th scope="col">Job</th><th scope="col">State</th><th scope="col">Progress</th>
      <th scope="col">Best speed-up</th><th scope="col">Devices</th><th scope="col">Age</th><th scope="col"><span class="unseen">Actions</span></th></tr></thead>
    <tbody>${items.map((job) => html`<${Row} key=${job.id} job=${job} now=${now} isChosen=${chosen.has(job.id)} pick=${pick} />`)}</tbody></table></div>`;
}

function Row({ job, now, isChosen, pick }) {
  const counted = Object.entries(job.trials_by_state).reduce((sum, [state, number]) => sum + (UNCOUNTED.has(state) ? 0 : number), 0);
  const isOver = Boolean(job.finished_at);
  const took = job.started_at ? ((job.finished_at ? Date.parse(job.finished_at) : now) - Date.parse(job.started_at)) / 1000 : null;
  const name = job.name || job.id;
  return html`<tr>
    <td><input type="checkbox" checked=${isChosen} onChange=${() => pick(job.id)} aria-label=${`Choose ${name} to compare`} /></td>
    <th scope="row" data-label="Job"><a href=${routeTo(["jobs", job.id])}>${name}</a><span class="note">${job.model}${Object.entries(job.labels).map(([key, value]) => html` <code>${key}=${value}</code>`)}</span></th>
    <td data-label="State"><${Badge} state=${job.state} />${job.state === "RUNNING" ? html`<span class="note">${job.stage.replaceAll("_", " ")}</span>` : null}${job.reason ? html`<span class="note clip" title=${job.reason}>${job.reason}</span>` : null}</td>
    <td data-label="Progress" class="tight"><${Bar} share=${isOver ? 1 : counted / job.trials_budget} label=${`Progress of ${name}`} /><span class="note">${counted} of ${job.trials_budget} trials${took !== null ? html` · ${duration(took)}` : null}</span></td>
    <td data-label="Best speed-up" class="tight"><strong class="big">${times(job.best_speedup)}</strong><span class="note">at most ${(job.max_drop * 100).toFixed(1)} % lost</span></td>
    <td data-label="Devices">${job.devices.length ? job.devices.map((one) => html`<a class="tag" href=${routeTo(["devices", one.id])}>${one.name}</a> `) : html`<span class="soft">none yet</span>`}</td>
    <td data-label="Age" class="tight"><time datetime=${job.created_at} title=${job.created_at}>${ago(job.created_at, now)}</time></td>
    <td>${session.can("submit") ? html`<a class="button small" href=${routeTo(["submit"], { from: job.id })} aria-label=${`Clone ${name}`}>Clone</a>` : null}</td>
  </tr>`;
}
