// A job's request from the form's fields and back. Pure. What is left at its default is not sent.

export const START = {
  name: "", modelSource: "builtin", modelName: "resnet8", modelParams: "", modelArtifact: "", dataSource: "builtin", dataName: "mnist-5k",
  dataArtifact: "", dataParams: {}, weights: "", targets: [{ device: "", labels: "", runtime: "onnxruntime", format: "", precision: ["fp32"], batch: "1", threads: "1", speedup: "2", latencyMs: "" }],
  metric: "accuracy", maxDropPercent: "1", trials: "40", wallMinutes: "15", epochs: "1", keep: "5", finalEpochs: "3", labels: "", rest: {},
};
const KNOWN = new Set(["name", "model", "data", "targets", "objective", "budget", "recovery", "final", "labels"]);

/** Return the request. Throws SyntaxError where the model's parameters are not JSON. */
export function toSpec(form) {
  const model = { source: form.modelSource };
  if (form.modelSource === "onnx") model.artifact = form.modelArtifact || null;
  else {
    model.name = form.modelName;
    if (form.modelParams.trim()) model.params = JSON.parse(form.modelParams);
  }
  if (form.weights) model.weights = form.weights;
  const data = form.dataSource === "npz" ? { source: "npz", artifact: form.dataArtifact || null } : { source: form.dataSource, name: form.dataName };
  if (Object.keys(form.dataParams).length) data.params = form.dataParams;
  const { recovery = {}, final = {}, ...rest } = form.rest;
  return {
    ...rest,
    ...(form.name.trim() ? { name: form.name.trim() } : {}),
    ...(form.labels.trim() ? { labels: labelsOf(form.labels) } : {}),
    model, data,
    targets: form.targets.map((target) => ({
      device: target.device ? { id: target.device } : { labels: labelsOf(target.labels) },
      runtime: target.runtime, precision: target.precision, batch: Number(target.batch), threads: Number(target.threads),
      ...(target.format ? { format: target.format } : {}),
      ...(target.speedup !== "" ? { speedup: Number(target.speedup) } : {}),
      ...(target.latencyMs !== "" ? { latency_ms: Number(target.latencyMs) } : {}),
    })),
    objective: { metric: form.metric, max_drop: rounded(Number(form.maxDropPercent) / 100) },
    budget: { trials: Number(form.trials), wall_s: Math.round(Number(form.wallMinutes) * 60_000) / 1000 },
    recovery: { ...recovery, epochs: Number(form.epochs) },
    final: { ...final, keep: Number(form.keep), epochs: Number(form.finalEpochs) },
  };
}

/** Return the form's fields of a request; what the form has no field for is kept as it was. */
export function fromSpec(spec) {
  const { model, data, recovery = {}, final = {} } = spec;
  const rest = Object.fromEntries(Object.entries(spec).filter(([name]) => !KNOWN.has(name)));
  return {
    ...START,
    name: spec.name || "", modelSource: model.source || "builtin", modelName: model.name || "", modelArtifact: model.artifact || "", weights: model.weights || "",
    modelParams: model.params && Object.keys(model.params).length ? JSON.stringify(model.params) : "",
    dataSource: data.source || "builtin", dataName: data.name || "", dataArtifact: data.artifact || "", dataParams: data.params || {},
    targets: spec.targets.map((target) => ({
      device: target.device?.id || "", labels: labelsText(target.device?.labels || {}), runtime: target.runtime || "onnxruntime", format: target.format || "",
      precision: [].concat(target.precision || ["fp32"]), batch: String(target.batch ?? 1), threads: String(target.threads ?? 1),
      speedup: text(target.speedup), latencyMs: text(target.latency_ms),
    })),
    metric: spec.objective?.metric || "accuracy", maxDropPercent: String(rounded((spec.objective?.max_drop ?? 0.01) * 100)),
    trials: String(spec.budget?.trials ?? 40), wallMinutes: String(rounded((spec.budget?.wall_s ?? 900) / 60)),
    epochs: String(recovery.epochs ?? 1), keep: String(final.keep ?? 5), finalEpochs: String(final.epochs ?? 3),
    labels: labelsText(spec.labels || {}), rest: { ...rest, recovery, final },
  };
}

export function labelsOf(text) {
  return Object.fromEntries(text.split(/[\s,]+/).filter(Boolean).map((part) => {
    const cut = part.indexOf("=");
    return cut < 0 ? [part, ""] : [part.slice(0, cut), part.slice(cut + 1)];
  }));
}

const labelsText = (labels) => Object.entries(labels).map(([key, value]) => `${key}=${value}`).join(" ");
const text = (value) => (value === null || value === undefined ? "" : String(value));
const rounded = (value) => Math.round(value * 1e9) / 1e9;
