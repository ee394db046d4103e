// A job's events as they happen; where the stream breaks, the page asks instead, and the stream is taken up where it broke.

import { retryDelay, send } from "./api.js";
import { eventReader } from "./sse.js";

const TERMINAL = new Set(["SUCCEEDED", "STOPPED", "CANCELLED", "FAILED"]);

/**
 * Follow a job's events until told to stop.
 * @param onEvents gets lists of events, oldest first; onState gets "live", "away" or "ended".
 * @returns a function that stops it.
 */
export function followJob(jobId, { onEvents, onState }) {
  const stop = new AbortController();
  let lastId = "";
  let failures = 0;
  let isOver = false;

  async function once() {
    const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
    const answer = await send(`/v1/jobs/${jobId}/events`, { headers, signal: stop.signal });
    onState("live");
    failures = 0;
    const read = eventReader();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = read(value).map((event) => ({ ...JSON.parse(event.data), type: event.type }));
      if (!events.length) continue;
      lastId = String(events.at(-1).id);
      isOver = events.some((event) => event.type === "job.state" && TERMINAL.has(event.data.state)) || isOver;
      onEvents(events);
    }
  }

  (async () => {
    while (!stop.signal.aborted) {
      try {
        await once();
        if (isOver) {
          onState("ended");
          return;
        }
      } catch (error) {
        if (stop.signal.aborted || error.status === 401 || error.status === 404) return;
        onState("away");
      }
      await new Promise((resolve) => setTimeout(resolve, retryDelay(failures)));
      failures += 1;
    }
  })();
  return () => stop.abort();
}
