// Raw samples of a measurement: base64 of zlib of little-endian float32, shape (pairs, 3).

/** Return {baseline, candidate, start}: arrays in the order they were timed, ms and s. */
export async function decodeSamples(samples) {
  const packed = Uint8Array.from(atob(samples.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return columnsOf(new DataView(await new Response(stream).arrayBuffer()), samples.pairs);
}

export function columnsOf(view, pairs) {
  const found = { baseline: [], candidate: [], start: [] };
  for (let pair = 0; pair < pairs; pair += 1) {
    found.baseline.push(view.getFloat32(pair * 12, true));
    found.candidate.push(view.getFloat32(pair * 12 + 4, true));
    found.start.push(view.getFloat32(pair * 12 + 8, true));
  }
  return found;
}

export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
