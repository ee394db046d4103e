import { html } from "../../vendor/preact.js";
import { moment } from "../format.js";
import { Card, Empty } from "../parts.js";
import { routeTo } from "../route.js";

function Events({ job, events, link }) {
  if (!events.length) return html`<${Empty} title=${link === "live" ? "Nothing has happened yet." : "The event stream is away."}><p>${link === "live" ? "What happens appears here at once." : "It is taken up again by itself."}</p><//>`;
  return html`<${Card} title=${`Events, the latest first (${events.length})`}><ol class="feed" tabindex="0" aria-label="Events">
    ${[...events].reverse().map((event) => html`<li key=${event.id}><time class="soft" datetime=${event.at}>${moment(event.at)}</time><code>${event.type}</code><span><${Said} job=${job} data=${event.data} /></span></li>`)}</ol><//>`;
}

function Said({ job, data }) {
  const words = [];
  if (data.trial !== undefined && data.trial !== null) words.push(html`<a href=${routeTo(["jobs", job.id, "trials", String(data.trial)])}>trial ${data.trial}</a> `);
  for (const name of ["state", "stage", "kind", "seed_name", "ended_by"]) if (data[name]) words.push(html`<span>${String(data[name]).replaceAll("_", " ")} </span>`);
  if (data.attempt > 1) words.push(html`<span>attempt ${data.attempt} </span>`);
  const why = data.reason || data.failure?.reason;
  if (why) words.push(html`<span class="soft">${why}</span>`);
  return words;
}

export const TABS = { events: Events };
