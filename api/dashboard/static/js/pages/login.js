import { html, useState } from "../../vendor/preact.js";
import { session } from "../api.js";
import { useTitle } from "../hooks.js";
import { Trouble } from "../parts.js";

export function Login({ why, onIn }) {
  useTitle("Log in");
  const [problem, setProblem] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const enter = async (event) => {
    event.preventDefault();
    const token = new FormData(event.target).get("token").trim();
    if (!token) return;
    setBusy(true);
    try {
      await session.open(token);
      onIn();
    } catch (refused) {
      setProblem(refused);
      setBusy(false);
    }
  };
  return html`<main class="login"><div class="card">
    <h1>Pruneloop</h1>
    <p class="soft">Every latency here was measured on the device it stands for.</p>
    ${why && !problem ? html`<div class="trouble" role="alert"><p>You were logged out: ${why.message}</p></div>` : null}
    <form onSubmit=${enter}>
      <label for="token">Access token</label>
      <input id="token" name="token" type="password" autocomplete="current-password" spellcheck="false" required autofocus />
      <p class="hint">The administrator's lies on the server in <code>admin-token</code>, in its data folder.</p>
      <${Trouble} error=${problem} />
      <button type="submit" class="primary" disabled=${isBusy}>Log in</button>
    </form>
  </div></main>`;
}
