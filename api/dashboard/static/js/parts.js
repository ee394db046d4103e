// Small pieces that pages are put together from.

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { bytes, NONE } from "./format.js";

const TONES = {
  QUEUED: "soft", RUNNING: "accent", PAUSED: "warn", STOPPING: "warn", SUCCEEDED: "good", STOPPED: "good", CANCELLED: "soft",
  FAILED: "bad", active: "good", paused: "warn", draining: "warn", quarantined: "bad", removed: "soft", offline: "soft",
  succeeded: "good", building: "accent", measuring: "accent", rejected: "soft", infeasible: "soft", failed: "bad",
  duplicate: "soft", cancelled: "soft", passed: "good", learning: "soft", out_of_band: "bad", wrong_output: "bad",
  done: "good", pending: "soft", leased: "accent",
};

export function Badge({ state, children }) {
  return html`<span class=${`badge tone-${TONES[state] || "soft"}`}>${children || String(state).toLowerCase().replaceAll("_", " ")}</span>`;
}

export function Bar({ share, label }) {
  const percent = Math.round(Math.max(0, Math.min(1, share || 0)) * 100);
  return html`<span class="bar" role="progressbar" aria-label=${label} aria-valuenow=${percent} aria-valuemin="0" aria-valuemax="100">
    <span style=${{ inlineSize: `${percent}%` }}></span></span>`;
}

export function Stat({ label, children, note }) {
  return html`<div class="stat"><dt>${label}</dt><dd>${children ?? NONE}</dd>${note ? html`<dd class="note">${note}</dd>` : null}</div>`;
}

export function Card({ title, actions, children, class: more = "", id }) {
  return html`<section class=${`card ${more}`} id=${id}>
    ${title ? html`<header><h2>${title}</h2>${actions ? html`<div class="actions">${actions}</div>` : null}</header>` : null}
    ${children}
  </section>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><p class="empty-title">${title}</p>${children}</div>`;
}

/** What went wrong and what to do; nothing where nothing did. */
export function Trouble({ error, again }) {
  if (!error) return null;
  return html`<div class="trouble" role="alert">
    <p>${error.message}</p>
    ${error.fields?.length ? html`<ul>${error.fields.map((one) => html`<li><code>${one.field}</code> ${one.message}</li>`)}</ul>` : null}
    ${again ? html`<button type="button" onClick=${again}>Try again</button>` : null}
  </div>`;
}

export function Loading({ what }) {
  return html`<p class="loading" aria-live="polite">Reading ${what}…</p>`;
}

/** A button that does something at the server: waits for it, and tells what was refused. */
export function Act({ label, run, tone = "", confirm, onDone, onProblem, disabled, title }) {
  const [isBusy, setBusy] = useState(false);
  const [isAsking, setAsking] = useState(false);
  const doIt = async () => {
    setAsking(false);
    setBusy(true);
    try {
      const done = await run();
      onProblem?.(null);
      onDone?.(done);
    } catch (problem) {
      onProblem?.(problem);
    } finally {
      setBusy(false);
    }
  };
  return html`<button type="button" class=${tone} disabled=${disabled || isBusy} title=${title}
      onClick=${() => (confirm ? setAsking(true) : doIt())}>${label}</button>
    ${isAsking ? html`<${Ask} text=${confirm} yes=${label} tone=${tone} onYes=${doIt} onNo=${() => setAsking(false)} />` : null}`;
}

function Ask({ text, yes, tone, onYes, onNo }) {
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  return html`<dialog ref=${dialog} onCancel=${onNo} aria-label=${yes}>
    <p>${text}</p>
    <div class="actions"><button type="button" class=${tone || "primary"} onClick=${onYes}>${yes}</button>
    <button type="button" onClick=${onNo}>Leave it</button></div>
  </dialog>`;
}

export function Copy({ text, label = "Copy" }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      return; // Without https a browser may refuse; the text stands there to be marked.
    }
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<button type="button" class="small" onClick=${copy}>${isCopied ? "Copied" : label}</button>`;
}

export function Command({ text }) {
  return html`<div class="command"><pre tabindex="0">${text}</pre><${Copy} text=${text} /></div>`;
}

/** A table in a box that scrolls on its own and may be reached by the keyboard. */
export function Table({ caption, head, children, class: more = "" }) {
  return html`<div class="table-box" tabindex="0" role="region" aria-label=${caption}>
    <table class=${more}><caption class="unseen">${caption}</caption>
      <thead><tr>${head.map((name) => (name.startsWith("#") ? html`<th scope="col" class="num">${name.slice(1)}</th>` : html`<th scope="col">${name}</th>`))}</tr></thead>
      <tbody>${children}</tbody></table></div>`;
}

export function Tabs({ label, tabs, current, href }) {
  return html`<nav class="tabs" aria-label=${label}>${tabs.map(
    ([name, text]) => html`<a href=${href(name)} aria-current=${name === current ? "page" : null}>${text}</a>`,
  )}</nav>`;
}

export function Conditions({ values }) {
  const rows = flat(values || {}).filter(([, value]) => value !== null && value !== undefined);
  if (!rows.length) return html`<p class="soft">None were told.</p>`;
  return html`<dl class="pairs">${rows.map(([path, value, name]) => html`<div><dt>${path}</dt><dd>${told(value, name)}</dd></div>`)}</dl>`;
}

/** Nested conditions under names with dots; lists stay values. */
function flat(values, prefix = "") {
  return Object.entries(values).flatMap(([name, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value) ? flat(value, `${prefix}${name}.`) : [[`${prefix}${name}`, value, name]]);
}

function told(value, name) {
  if (typeof value === "number" && name.endsWith("_bytes")) return bytes(value);
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : Math.abs(value) < 0.001 ? value.toExponential(1) : String(Math.round(value * 1000) / 1000);
  if (Array.isArray(value)) return value.map((one) => told(one, name)).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
