// Spans of work as lanes and sums. Pure.

/** Return [{name, spans}]: builders first, then devices; what waits for anybody has a lane of its own at the end. */
export function lanesOf(spans) {
  const lanes = new Map();
  for (const span of spans) {
    const isBuild = span.kind !== "measurement";
    const key = span.by ? `${isBuild ? 0 : 1} ${span.by}` : `2 ${isBuild ? "builds" : "measurements"}`;
    if (!lanes.has(key)) lanes.set(key, { name: span.by ? (isBuild ? `builder ${span.by.replace(/^build@/, "")}` : span.by) : `${isBuild ? "builds" : "measurements"} that wait`, spans: [] });
    lanes.get(key).spans.push(span);
  }
  return [...lanes].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, lane]) => lane);
}

/** Seconds worked and waited a kind of work. */
export function sumsOf(spans) {
  const sums = new Map();
  for (const span of spans) {
    const sum = sums.get(span.kind) || { kind: span.kind, count: 0, worked: 0, waited: 0 };
    sums.set(span.kind, sum);
    if (span.finished_s !== null) sum.count += 1;
    if (span.started_s === null) continue;
    sum.waited += Math.max(0, span.started_s - span.asked_s);
    if (span.finished_s !== null) sum.worked += span.finished_s - span.started_s;
  }
  return [...sums.values()];
}
