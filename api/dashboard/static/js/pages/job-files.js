import { html, useEffect, useState } from "../../vendor/preact.js";
import { download, getAll, send } from "../api.js";
import { bytes, shortDigest } from "../format.js";
import { Act, Card, Command, Copy, Empty, Loading, Table, Trouble } from "../parts.js";
import { routeTo } from "../route.js";

export function fileName(item) {
  const who = item.trial === null ? "dense" : `trial-${String(item.trial).padStart(3, "0")}`;
  return `t${item.target}-${who}-${item.digest.slice(7, 15)}.${item.format}`;
}

function Files({ job, front }) {
  const [state, setState] = useState({ items: null, error: null });
  const [said, setSaid] = useState("");
  const [problem, setProblem] = useState(null);
  const load = () => getAll(`/v1/jobs/${job.id}/artifacts`).then((items) => setState({ items, error: null }), (error) => setState({ items: null, error }));
  useEffect(() => { load(); }, [job.id, front]);
  if (state.error) return html`<${Trouble} error=${state.error} again=${load} />`;
  if (!state.items) return html`<${Loading} what="the files" />`;
  if (!state.items.length) return html`<${Empty} title="No file yet."><p>Files of the front's points appear here as soon as the dense model is measured.</p><//>`;
  const manifests = state.items.filter((item) => item.manifest);
  return html`<${Card} title="Files of the front"><p role="status" class="soft">${said}</p><${Trouble} error=${problem} />
    <${Table} caption="Files" head=${["Model", "Target", "Format", "#Size", "sha256", ""]}>
      ${state.items.map((item) => html`<tr><th scope="row">${item.trial === null ? "Dense" : html`<a href=${routeTo(["jobs", job.id, "trials", String(item.trial)])}>Trial ${item.trial}</a>`}<span class="note">${item.stage}</span></th>
        <td>${item.target}</td><td>${item.format}</td><td class="num">${bytes(item.size_bytes)}</td><td><code title=${item.digest}>${shortDigest(item.digest)}…</code> <${Copy} text=${item.digest} /></td>
        <td><${Act} label="Download" tone="small" onProblem=${setProblem} run=${async () => {
          const name = fileName(item);
          const isChecked = await download(item.digest, name);
          setSaid(`${name} is here${isChecked ? " and its sha256 is right" : "; this page could not check its sha256, as it was not loaded by https"}.`);
        }} /></td></tr>`)}<//>
      <p class="hint">All at once, on the command line: <code>pruneloop download ${job.id}</code></p><//>
    <${Card} title="Reproduce a number">${manifests.length ? html`<${Reproduce} job=${job} items=${manifests} />` : html`<p class="soft">Every final gets a manifest with the command that measures it again, once the job has succeeded.</p>`}<//>`;
}

function Reproduce({ job, items }) {
  const [which, setWhich] = useState(items.find((item) => item.trial !== null)?.manifest || items[0].manifest);
  const [manifest, setManifest] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    setManifest(null);
    send(`/v1/artifacts/${which}`).then((answer) => answer.json()).then(setManifest, setProblem);
  }, [which]);
  const names = new Map(items.map((item) => [item.manifest, `${item.trial === null ? "dense" : `trial ${item.trial}`}, target ${item.target}, ${item.format}`]));
  return html`<p><label for="manifest">Of</label> <select id="manifest" onChange=${(event) => setWhich(event.target.value)}>${[...names].map(([digest, name]) => html`<option value=${digest} selected=${digest === which}>${name}</option>`)}</select></p>
    <${Trouble} error=${problem} />
    ${manifest ? html`<p>On any machine with the agent: fetch the files, then time the one against the other.</p><${Command} text=${`pruneloop download ${job.id}\n${manifest.reproduce}`} />
      <details><summary>The whole manifest</summary><pre tabindex="0">${JSON.stringify(manifest, null, 2)}</pre></details>` : html`<${Loading} what="the manifest" />`}`;
}

function Spec({ job }) {
  const text = JSON.stringify(job.spec, null, 2);
  return html`<${Card} title="The request, with every default" actions=${html`<${Copy} text=${text} /><a class="button small" href=${routeTo(["submit"], { from: job.id })}>Clone</a>`}><pre tabindex="0">${text}</pre><//>
    ${job.report.notes?.length ? html`<${Card} title="Notes">${job.report.notes.map((note) => html`<p>${note}</p>`)}<//>` : null}
    ${job.report.versions ? html`<${Card} title="Versions"><dl class="pairs">${Object.entries(job.report.versions).map(([name, version]) => html`<div><dt>${name}</dt><dd>${version}</dd></div>`)}</dl><//>` : null}`;
}

export const TABS = { files: Files, spec: Spec };
