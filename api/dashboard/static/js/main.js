// The shell: who is here, which page, light or dark, and whether the server answers.

import { html, render, useEffect, useState } from "../vendor/preact.js";
import { session } from "./api.js";
import { useLazy, useRoute } from "./hooks.js";
import { routeTo } from "./route.js";
import { Login } from "./pages/login.js";
import { Loading } from "./parts.js";

const PAGES = {
  jobs: () => import("./pages/jobs.js"),
  job: () => import("./pages/job.js"),
  trial: () => import("./pages/trial.js"),
  submit: () => import("./pages/submit.js"),
  devices: () => import("./pages/devices.js"),
  device: () => import("./pages/device.js"),
  compare: () => import("./pages/compare.js"),
};

function pageOf({ path }) {
  const [first, id, second, number] = path;
  if (first === "jobs" && id && second === "trials" && number) return ["trial", { jobId: id, number: Number(number) }];
  if (first === "jobs" && id) return ["job", { jobId: id }];
  if (first === "devices" && id) return ["device", { deviceId: id }];
  return PAGES[first] ? [first, {}] : ["jobs", {}];
}

function App() {
  const route = useRoute();
  const [isIn, setIn] = useState(session.isOpen);
  const [why, setWhy] = useState(null);
  const [isConnected, setConnected] = useState(true);
  useEffect(() => {
    session.whenClosed((problem) => {
      setWhy(problem);
      setIn(false);
    });
    session.whenConnection(setConnected);
  }, []);
  if (!isIn) {
    return html`<${Login} why=${why} onIn=${() => {
      setWhy(null);
      setIn(true);
    }} />`;
  }
  const [name, props] = pageOf(route);
  const leave = async () => {
    await session.close();
    setIn(false);
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>To the content</a>
    <${Header} current=${route.path[0]} onLeave=${leave} />
    <div class="away" role="status" hidden=${isConnected}>The server does not answer. What you see is from before; this page goes on by itself.</div>
    <main id="main" tabindex="-1"><${Page} key=${`${name}/${JSON.stringify(props)}`} name=${name} props=${props} route=${route} /></main>`;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

function Page({ name, props, route }) {
  const Found = useLazy(name, PAGES, (module) => module.default);
  return Found ? html`<${Found} ...${props} route=${route} />` : html`<${Loading} what="the page" />`;
}

function Header({ current, onLeave }) {
  const links = [["jobs", "Jobs"], ["devices", "Devices"], ["compare", "Compare"]];
  return html`<header class="top">
    <a class="brand" href="#/jobs"><${Mark} />Pruneloop</a>
    <nav aria-label="Pages">${links.map(
      ([name, text]) => html`<a href=${routeTo([name])} aria-current=${current === name ? "page" : null}>${text}</a>`,
    )}</nav>
    <div class="actions">${session.can("submit") ? html`<a class="button primary" href="#/submit">New job</a>` : null}<${Theme} />
    <button type="button" onClick=${onLeave} title=${`Logged in as ${session.who?.name}`}>Log out</button></div>
  </header>`;
}

function Mark() {
  return html`<svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true"><path d="M5 25c5-1 7-10 11-12s7-2 11-7" fill="none" stroke="currentColor" stroke-width="3" stroke-linecap="round"/>
    <circle cx="5.5" cy="24.500" r="3.400" fill="currentColor"/><circle cx="16" cy="13" r="3.400" fill="currentColor"/><circle cx="26.500" cy="6.500" r="3.400" fill="currentColor"/></svg>`;
}

export function Theme() {
  const read = () => document.documentElement.dataset.theme || "auto";
  const [theme, setTheme] = useState(read);
  const next = { auto: "light", light: "dark", dark: "auto" }[theme];
  const change = () => {
    if (next === "auto") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("pruneloop.theme");
    } else {
      document.documentElement.dataset.theme = next;
      localStorage.setItem("pruneloop.theme", next);
    }
    setTheme(next);
    dispatchEvent(new Event("pruneloop:theme"));
  };
  return html`<button type="button" onClick=${change} title=${`Colours: ${theme}; press for ${next}`} aria-label=${`Colours: ${theme}. Change to ${next}`}>
    ${{ auto: "◐", light: "☀", dark: "☾" }[theme]}</button>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
