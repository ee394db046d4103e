// node --test: the modules of the dashboard that touch neither the page nor the network.

import assert from "node:assert/strict";
import test from "node:test";
import { deflateSync } from "node:zlib";

const at = (name) => new URL(`../../../api/dashboard/static/js/${name}`, import.meta.url);
const load = (name) => import(at(name));
const { parseRoute, routeTo } = await load("route.js");
const format = await load("format.js");
const { eventReader } = await load("sse.js");
const front = await load("front.js");
const { decodeSamples, median } = await load("samples.js");
const { fromSpec, labelsOf, START, toSpec } = await load("spec.js");
const { lanesOf, sumsOf } = await load("timeline.js");

test("routes go to a hash and back", () => {
  const hash = routeTo(["jobs", "job/1"], { state: ["RUNNING", "QUEUED"], label: "", tab: "front" });
  assert.equal(hash, "#/jobs/job%2F1?state=RUNNING&state=QUEUED&tab=front");
  const { path, query } = parseRoute(hash);
  assert.deepEqual(path, ["jobs", "job/1"]);
  assert.deepEqual(query.getAll("state"), ["RUNNING", "QUEUED"]);
  assert.deepEqual(parseRoute("").path, ["jobs"]);
  assert.deepEqual(parseRoute("#/%E0%A4%A").path, ["%E0%A4%A"]);
});

test("numbers read well", () => {
  assert.equal(format.ms(0.060412), "0.0604 ms");
  assert.equal(format.ms(12.3456), "12.3 ms");
  assert.equal(format.ms(null), "–");
  assert.equal(format.times(2.855), "2.85×");
  assert.equal(format.count(1_360_000), "1.36 M");
  assert.equal(format.bytes(56_700), "56.7 kB");
  assert.equal(format.duration(0.25), "250 ms");
  assert.equal(format.duration(393), "6 min 33 s");
  assert.equal(format.duration(3600 * 5 + 120), "5 h 02 min");
  assert.equal(format.duration(-1), "0 ms");
  assert.equal(format.interval(0.05951, 0.06123), "0.0595 – 0.0612");
});

test("events are read across chunks, whatever the line ends", () => {
  const read = eventReader();
  assert.deepEqual(read(": hello\nretry: 2000\n\nevent: a\nda"), []);
  assert.deepEqual(read('ta: {"x":1}\nid: 7\n\r\n'.replace("\n\r\n", "\n\n")), [{ id: "7", type: "a", data: '{"x":1}' }]);
  assert.deepEqual(read("data: one\r\ndata: two\r\n\r\n"), [{ id: null, type: "message", data: "one\ntwo" }]);
});

test("neighbours whose intervals overlap are a tie, others are not", () => {
  const point = (latency, low, high) => ({ latency, low, high });
  assert.deepEqual(front.ties([point(1, 0.9, 1.1), point(1.15, 1.05, 1.2), point(2, 1.9, 2.1)]), [1, 1, null]);
  assert.deepEqual(front.ties([point(2, 1.9, 2.1), point(1, 0.9, 1.1)]), [null, null]);
  assert.deepEqual(front.ties([]), []);
});

test("a dropped block removes all of its groups", () => {
  const columns = {
    groups: [{ name: "a", channels: 8 }, { name: "b", channels: 4 }], blocks: [{ name: "x", groups: ["b"] }],
    widths: [4, 4, 8, 2], dropped: [[0], []],
  };
  assert.deepEqual(front.sparsityOf(columns, 0), [0.5, 1]);
  assert.deepEqual(front.sparsityOf(columns, 1), [0, 0.5]);
});

test("one far-off trial does not flatten the plot, and the nearest point is found", () => {
  assert.equal(front.accuracyFloor([0.98, 0.97, 0.2], 0.98, 0.01), 0.97);
  assert.equal(front.accuracyFloor([0.5, 0.4], 0.98, 0.01), 0.4);
  const [low, high] = front.paddedRange([1, 1]);
  assert.ok(low < 1 && high > 1);
  assert.deepEqual(front.paddedRange([NaN]), [0, 1]);
  assert.equal(front.nearest([{ px: 0, py: 0 }, { px: 10, py: 0 }], 8, 1).px, 10);
  assert.equal(front.nearest([{ px: 0, py: 0 }], 100, 0), null);
});

test("samples come out as they went in", async () => {
  const raw = new Float32Array([1.5, 0.5, 0.25, 2.5, 1, 0.5]);
  const data = deflateSync(Buffer.from(raw.buffer)).toString("base64");
  assert.deepEqual(await decodeSamples({ pairs: 2, data }), { baseline: [1.5, 2.5], candidate: [0.5, 1], start: [0.25, 0.5] });
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([1, 2]), 1.5);
  assert.equal(median([]), null);
});

test("a request survives the form, with what the form has no field for", () => {
  const spec = {
    name: "n", model: { source: "builtin", name: "resnet8", params: { width: 16 }, weights: "sha256:1" }, data: { source: "builtin", name: "mnist-5k" },
    targets: [{ device: { labels: { class: "edge" } }, runtime: "openvino", precision: ["fp32", "int8"], batch: 1, threads: 2, speedup: 2, format: "openvino" }],
    objective: { metric: "accuracy", max_drop: 0.015 }, budget: { trials: 9, wall_s: 100 }, levels: ["channel"], seed: 7,
    recovery: { epochs: 0.5, distill: false }, final: { keep: 2, epochs: 1 }, labels: { team: "vision" },
  };
  assert.deepEqual(toSpec(fromSpec(spec)), spec);
  const plain = toSpec(START);
  assert.deepEqual(plain.targets[0].device, { labels: {} });
  assert.equal(plain.objective.max_drop, 0.01);
  assert.throws(() => toSpec({ ...START, modelParams: "{" }), SyntaxError);
  assert.deepEqual(labelsOf("a=b=c, d"), { a: "b=c", d: "" });
});

test("work is laid in lanes, builders first, and summed", () => {
  const span = (kind, by, asked_s, started_s, finished_s) => ({ kind, by, asked_s, started_s, finished_s });
  const spans = [span("measurement", "box", 1, 2, 4), span("candidate", "build@vm:1", 0, 0, 1), span("measurement", null, 5, null, null)];
  assert.deepEqual(lanesOf(spans).map((lane) => lane.name), ["builder vm:1", "box", "measurements that wait"]);
  assert.deepEqual(sumsOf(spans)[0], { kind: "measurement", count: 1, worked: 2, waited: 1 });
});
