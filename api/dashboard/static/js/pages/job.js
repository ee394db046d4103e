import { html, useEffect, useRef, useState } from "../../vendor/preact.js";
import { post, session } from "../api.js";
import { ago, digits, duration, moment, times } from "../format.js";
import { useData, useLazy, useNow, useThrottled, useTitle } from "../hooks.js";
import { followJob } from "../live.js";
import { Act, Badge, Bar, Loading, Stat, Tabs, Trouble } from "../parts.js";
import { routeTo } from "../route.js";
import { FrontTab } from "./job-front.js";

const TABS = [["front", "Front"], ["network", "Network"], ["search", "Search"], ["timeline", "Timeline"], ["events", "Events"], ["files", "Files"], ["spec", "Request"]];
const LAZY = {
  "job-network": () => import("./job-network.js"), "job-search": () => import("./job-search.js"), "job-timeline": () => import("./job-timeline.js"),
  "job-events": () => import("./job-events.js"), "job-files": () => import("./job-files.js"), "job-spec": () => import("./job-files.js"),
};
const OVER = new Set(["SUCCEEDED", "STOPPED", "CANCELLED", "FAILED"]);
const EVENTS_KEPT = 500;
const BIG = 400; // trials: then everything is asked for less often

/** Everything a job's page shows, kept fresh by its events, and by asking where they do not come. */
function useJob(jobId, target) {
  const job = useData(`/v1/jobs/${jobId}`, 5000);
  const front = useData(`/v1/jobs/${jobId}/front?target=${target}`);
  const columns = useData(`/v1/jobs/${jobId}/trial_columns?target=${target}`);
  const [events, setEvents] = useState([]);
  const [link, setLink] = useState("away");
  const isBig = (job.data?.trials_asked || 0) > BIG;
  const soon = useThrottled(() => {
    job.reload();
    front.reload();
    columns.reload();
  }, isBig ? 3000 : 700);
  useEffect(() => {
    setEvents([]);
    return followJob(jobId, {
      onState: setLink,
      onEvents: (fresh) => {
        setEvents((before) => [...before, ...fresh].slice(-EVENTS_KEPT));
        soon();
      },
    });
  }, [jobId]);
  // The job is asked every few seconds anyway; where the stream is away, a change of it brings the rest.
  const before = useRef(null);
  useEffect(() => {
    if (before.current && before.current !== job.data && link !== "live") soon();
    before.current = job.data;
  }, [job.data, link]);
  return { job, front, columns, events, link, soon };
}

export default function JobPage({ jobId, route }) {
  const target = Number(route.query.get("target") || 0);
  const tab = route.query.get("tab") || "front";
  const { job, front, columns, events, link, soon } = useJob(jobId, target);
  const [problem, setProblem] = useState(null);
  useTitle(job.data ? job.data.name || jobId : "Job");
  if (!job.data) return job.error ? html`<${Trouble} error=${job.error} again=${job.reload} /><p><a href="#/jobs">All jobs</a></p>` : html`<${Loading} what="the job" />`;
  const data = job.data;
  const href = (changes) => routeTo(["jobs", jobId], { target: target || "", tab: tab === "front" ? "" : tab, ...changes });
  return html`
    <p class="crumbs"><a href="#/jobs">Jobs</a> / <span class="mono">${jobId}</span></p>
    <div class="head"><div><h1>${data.name || jobId}</h1>
      <p class="actions"><${Badge} state=${data.state} /><span class="soft">${data.stage.replaceAll("_", " ")}</span><${Link} state=${link} isOver=${OVER.has(data.state)} /></p></div>
      <${Verbs} job=${data} soon=${soon} onProblem=${setProblem} /></div>
    <${Trouble} error=${problem} />
    ${data.reason ? html`<div class=${`trouble ${data.state === "FAILED" ? "" : "warning"}`}><p>${data.reason}</p></div>` : null}
    <${Figures} job=${data} />
    ${data.spec.targets.length > 1 ? html`<${Tabs} label="Targets" current=${String(target)} href=${(name) => href({ target: name === "0" ? "" : name })}
      tabs=${data.spec.targets.map((one, index) => [String(index), `Target ${index}: ${targetName(one)}`])} />` : null}
    <${Tabs} label="Views" tabs=${TABS} current=${tab} href=${(name) => href({ tab: name === "front" ? "" : name })} />
    <${Trouble} error=${front.error?.status ? front.error : null} again=${front.reload} />
    ${tab === "front" ? html`<${FrontTab} job=${data} front=${front.data} columns=${columns.data} target=${target} />`
      : html`<${Lazy} name=${tab} job=${data} front=${front.data} columns=${columns.data} target=${target} events=${events} link=${link} />`}`;
}

export function targetName(target) {
  const where = target.device.id || Object.entries(target.device.labels).map(([key, value]) => `${key}=${value}`).join(", ") || "any device";
  return `${target.runtime}, ${target.precision.join("/")}, ${where}`;
}

function Lazy({ name, ...props }) {
  const Found = useLazy(`job-${name}`, LAZY, (module) => module.TABS[name]);
  return Found ? html`<${Found} ...${props} />` : html`<${Loading} what="this view" />`;
}

function Link({ state, isOver }) {
  if (isOver) return null;
  return html`<span class=${`live is-${state}`} role="status">${state === "live" ? "live" : "asking every few seconds"}</span>`;
}

function Verbs({ job, soon, onProblem }) {
  const say = (verb) => () => post(`/v1/jobs/${job.id}/${verb}`);
  const common = { onDone: soon, onProblem };
  const may = !session.can("submit") ? {} : {
    pause: ["QUEUED", "RUNNING"].includes(job.state), resume: job.state === "PAUSED",
    stop: ["QUEUED", "RUNNING", "PAUSED"].includes(job.state), cancel: !OVER.has(job.state),
  };
  return html`<div class="actions">
    ${may.pause ? html`<${Act} label="Pause" run=${say("pause")} title="Ask no new trials; running ones go on" ...${common} />` : null}
    ${may.resume ? html`<${Act} label="Resume" tone="primary" run=${say("resume")} ...${common} />` : null}
    ${may.stop ? html`<${Act} label="Stop" run=${say("stop")} confirm="Stop this job? Running trials finish and the front stays; there will be no final recovery." ...${common} />` : null}
    ${may.cancel ? html`<${Act} label="Cancel" tone="danger" run=${say("cancel")} confirm="Cancel this job? What runs is killed now." ...${common} />` : null}
    ${session.can("submit") ? html`<a class="button" href=${routeTo(["submit"], { from: job.id })}>Clone</a>` : null}
    <a class="button" href=${routeTo(["compare"], { job: job.id })}>Compare</a></div>`;
}

function Figures({ job }) {
  const now = useNow(1000);
  const p = job.progress;
  const isOver = OVER.has(job.state);
  const elapsed = p.elapsed_s;
  const share = isOver ? 1 : Math.max(p.trials_finished / p.trials_budget, elapsed / p.wall_budget_s);
  const failed = (p.trials_by_state.failed || 0) + (p.trials_by_state.infeasible || 0);
  const running = [...p.builds_running.map((one) => `${one.kind}${one.progress.stage ? `: ${one.progress.stage}` : ""}`), ...p.measurements_running.map((one) => `measuring on ${one.device}`)];
  return html`<section class="card" aria-label="In figures"><dl class="stats">
    <${Stat} label="Best speed-up" note=${`at most ${(job.spec.objective.max_drop * 100).toFixed(1)} % lost`}>${times(p.best_speedup)}<//>
    <${Stat} label="Trials" note=${failed ? `${failed} gave no point` : `${p.trials_asked} asked`}>${p.trials_finished} of ${p.trials_budget}<//>
    ${p.finals_wanted ? html`<${Stat} label="Finals" note="recovered long">${p.finals_done} of ${p.finals_wanted}<//>` : null}
    <${Stat} label="Time used" note=${html`of ${duration(p.wall_budget_s)}<${Bar} share=${share} label="Budget used" />`}>${duration(elapsed)}<//>
    <${Stat} label=${isOver ? "Ended" : "Submitted"} note=${isOver && job.ended_by ? `by ${job.ended_by}` : moment(job.created_at)}>${ago(isOver ? job.finished_at : job.created_at, now)}<//>
    ${job.queue ? html`<${Stat} label="In the queue" note=${job.queue.expected_wait_s !== null ? `about ${duration(job.queue.expected_wait_s)}` : null}>${job.queue.ahead} ahead<//>` : null}
    ${!isOver ? html`<${Stat} label="Now" note=${`${p.builds_waiting} builds, ${p.measurements_waiting} measurements wait`}><span class="now">${running.join("; ") || "nothing runs"}</span><//>` : null}
    ${isOver && job.report.overhead_fraction !== undefined ? html`<${Stat} label="Overhead" note="neither built nor measured">${digits(job.report.overhead_fraction * 100, 2)} %<//>` : null}
  </dl></section>`;
}
