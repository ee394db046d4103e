// What a plot of a front is drawn from. Pure.

/** Return the columns' trials as objects; `widths` of a trial are read by `widthsOf`. */
export function trialsOf(columns) {
  return columns.number.map((number, index) => ({
    index,
    number,
    state: columns.states[columns.state[index]],
    precision: columns.precisions[columns.precision[index]],
    seed: columns.seed_name[index],
    duplicateOf: columns.duplicate_of[index],
    accuracy: columns.accuracy_search[index],
    latency: columns.latency_ms[index],
    low: columns.latency_low_ms[index],
    high: columns.latency_high_ms[index],
    predicted: columns.predicted_ms[index],
    speedup: columns.speedup[index],
    macs: columns.macs[index],
    params: columns.params[index],
    finished: columns.finished_s[index],
    dropped: columns.dropped[index],
  }));
}

/** Sparsity of every group in one trial, 1 where the block it lies in is gone. */
export function sparsityOf(columns, index) {
  const size = columns.groups.length;
  const gone = new Set(columns.dropped[index].flatMap((block) => columns.blocks[block].groups));
  return columns.groups.map((group, place) =>
    gone.has(group.name) ? 1 : 1 - columns.widths[index * size + place] / group.channels,
  );
}

/** Points of a front as drawn: accuracy of the test split where it is known. */
export function pointOf(point) {
  return {
    trial: point.trial,
    stage: point.stage,
    precision: point.precision,
    accuracy: point.accuracy ?? point.accuracy_search,
    isTest: point.accuracy !== null && point.accuracy !== undefined,
    latency: point.latency_ms,
    low: point.latency_ci_ms[0],
    high: point.latency_ci_ms[1],
    speedup: point.speedup,
    speedupLow: point.speedup_ci[0],
    speedupHigh: point.speedup_ci[1],
    within: point.within_max_drop,
    isNoisy: point.is_noisy,
    isSuspect: point.is_suspect,
    size: point.size_bytes,
    macs: point.macs,
    params: point.params,
  };
}

/** Group points, fastest first, whose latency intervals overlap: neither may be called the faster. Returns a tie's number or null. */
export function ties(points) {
  const order = points.map((point, index) => ({ ...point, index })).sort((a, b) => a.latency - b.latency);
  const found = new Array(points.length).fill(null);
  let group = 0;
  for (let at = 1; at < order.length; at += 1) {
    const before = order[at - 1];
    const here = order[at];
    if (here.low <= before.high) {
      if (found[before.index] === null) {
        group += 1;
        found[before.index] = group;
      }
      found[here.index] = found[before.index];
    }
  }
  return found;
}

/** Range of numbers with a margin; a single number gets room around it. */
export function paddedRange(values, share = 0.06, least = 0) {
  const known = values.filter((value) => Number.isFinite(value));
  if (!known.length) return [0, 1];
  let low = Math.min(...known);
  let high = Math.max(...known);
  const room = Math.max((high - low) * share, Math.abs(high) * 0.004, least);
  low -= room;
  high += room;
  return [low, high];
}

/** Accuracies lie in a crowd near the top; what is far below would flatten it. Returns the lowest one worth showing. */
export function accuracyFloor(accuracies, dense, maxDrop) {
  const known = accuracies.filter((value) => Number.isFinite(value));
  if (!known.length || !Number.isFinite(dense)) return known.length ? Math.min(...known) : 0;
  const reach = Math.max(4 * maxDrop, 0.05);
  const near = known.filter((value) => value >= dense - reach);
  return near.length >= 2 ? Math.min(...near) : Math.min(...known);
}

/** The nearest drawn point to a place on the plot, within so many pixels; null where there is none. */
export function nearest(points, x, y, within = 22) {
  let best = null;
  let least = within * within;
  for (const point of points) {
    const distance = (point.px - x) ** 2 + (point.py - y) ** 2;
    if (distance <= least) {
      least = distance;
      best = point;
    }
  }
  return best;
}
