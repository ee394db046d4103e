import { html, useState } from "../../vendor/preact.js";
import { post, session } from "../api.js";
import { ago, duration, NONE } from "../format.js";
import { useData, useNow, useTitle } from "../hooks.js";
import { Badge, Card, Command, Empty, Loading, Trouble } from "../parts.js";
import { routeTo } from "../route.js";

export default function Devices() {
  useTitle("Devices");
  const { data, error, reload } = useData("/v1/devices?page_size=500", 2000);
  const [isAdding, setAdding] = useState(false);
  const shown = data?.items.filter((device) => device.state !== "removed") || [];
  return html`<div class="head"><h1>Devices</h1><div class="actions">${!session.can("admin") ? null : html`<button type="button" class="primary" aria-expanded=${isAdding} onClick=${() => setAdding(!isAdding)}>Add a device</button>`}</div></div>
    ${isAdding ? html`<${Add} devices=${data?.items || []} onClose=${() => setAdding(false)} />` : null}
    <${Trouble} error=${error?.status ? error : null} again=${reload} />
    ${!data ? html`<${Loading} what="the devices" />` : shown.length ? html`<${List} items=${shown} />` : html`<${Empty} title="No device yet.">
      <p>A device is any machine that measures: this one, a board on your desk, a phone-class box in a rack.</p>
      <p><button type="button" class="primary" onClick=${() => setAdding(true)}>Add the first one</button></p><//>`}`;
}

export function stateOf(device) {
  return device.state === "active" && !device.is_online ? "offline" : device.state;
}

export function temperatureOf(conditions) {
  const found = Object.entries(conditions || {}).filter(([name, value]) => /temp/.test(name) && typeof value === "number").map(([, value]) => value);
  return found.length ? `${Math.max(...found).toFixed(0)} °C` : NONE;
}

export function clockOf(conditions) {
  const found = Object.entries(conditions || {}).filter(([name, value]) => /(mhz|clock)/i.test(name) && typeof value === "number").map(([, value]) => value);
  return found.length ? `${Math.max(...found).toFixed(0)} MHz` : NONE;
}

function List({ items }) {
  const now = useNow(1000);
  return html`<div class="table-box" tabindex="0" role="region" aria-label="Devices"><table class="stacks"><thead><tr>
    ${["Device", "State", "Measures now", "Queue", "Temperature", "Clock", "Load", "Runtimes", "Heard of"].map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
    <tbody>${items.map((device) => html`<tr key=${device.id}>
      <th scope="row" data-label="Device"><a href=${routeTo(["devices", device.id])}>${device.name}</a><span class="note">${device.inventory.cpu}, ${device.inventory.cores} cores, ${device.inventory.machine}</span>${Object.entries(device.labels).map(([key, value]) => html`<code class="tag">${key}=${value}</code> `)}</th>
      <td data-label="State"><${Badge} state=${stateOf(device)} />${device.note ? html`<span class="note">${device.note}</span>` : null}${Object.keys(device.lost_runtimes).map((name) => html`<span class="note">lost ${name}</span>`)}</td>
      <td data-label="Measures now">${device.current_measurement_id ? html`<span class="mono">${device.current_measurement_id.slice(-8)}</span>` : html`<span class="soft">nothing</span>`}</td>
      <td data-label="Queue" class="num">${device.queue_depth}</td>
      <td data-label="Temperature" class="num">${temperatureOf(device.conditions)}</td>
      <td data-label="Clock" class="num">${clockOf(device.conditions)}</td>
      <td data-label="Load" class="num">${typeof device.conditions.load_1m === "number" ? device.conditions.load_1m.toFixed(1) : NONE}</td>
      <td data-label="Runtimes">${device.inventory.runtimes.filter((one) => one.available).map((one) => html`<span class="tag">${one.name}</span> `)}</td>
      <td data-label="Heard of">${ago(device.last_seen_at, now)}</td></tr>`)}</tbody></table></div>`;
}

/** One line for the new machine, and a watch for its arrival. */
function Add({ devices, onClose }) {
  const [made, setMade] = useState(null);
  const [problem, setProblem] = useState(null);
  const [known, setKnown] = useState(null);
  const now = useNow(1000);
  const make = async (event) => {
    event.preventDefault();
    const labels = {};
    for (const part of new FormData(event.target).get("labels").split(/[\s,]+/).filter(Boolean)) {
      const [key, ...rest] = part.split("=");
      labels[key] = rest.join("=");
    }
    try {
      setKnown(new Set(devices.map((device) => device.id)));
      setMade(await post("/v1/join_tokens", { labels }));
      setProblem(null);
    } catch (refused) {
      setProblem(refused);
    }
  };
  const arrived = known ? devices.filter((device) => !known.has(device.id)) : [];
  return html`<${Card} title="Add a device" actions=${html`<button type="button" class="small" onClick=${onClose}>Close</button>`}>
    ${made ? html`
      <p>Run this one line on the new machine (Python 3.11 or later). It installs the agent into a folder of its own, joins, and measures.</p>
      <${Command} text=${made.command} />
      ${made.note ? html`<div class="trouble warning"><p>${made.note}</p></div>` : null}
      <div role="status" aria-live="polite">${arrived.length ? arrived.map((device) => html`<p><${Badge} state=${stateOf(device)} /> <a href=${routeTo(["devices", device.id])}>${device.name}</a> has joined.</p>`)
        : html`<p class="soft">Waiting for it to arrive… The token is good once, for ${duration((Date.parse(made.expires_at) - now) / 1000)}.</p>`}</div>
      <button type="button" onClick=${() => { setMade(null); setKnown(null); }}>Another one</button>`
      : html`<form onSubmit=${make}><div class="form"><div><label for="labels">Labels, if you like</label><input id="labels" name="labels" placeholder="class=edge room=lab" /><p class="hint">Jobs choose devices by them.</p></div></div>
        <${Trouble} error=${problem} /><button type="submit" class="primary">Make the command</button></form>`}<//>`;
}
