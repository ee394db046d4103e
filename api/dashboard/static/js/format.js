// Numbers and times as people read them. Pure.

export const NONE = "–";

export function ms(value) {
  if (value === null || value === undefined) return NONE;
  return `${digits(value, 3)} ms`;
}

/** Return a number with about so many significant digits and no exponent. */
export function digits(value, significant = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  if (value === 0) return "0";
  const whole = Math.floor(Math.log10(Math.abs(value))) + 1;
  return value.toFixed(Math.max(0, Math.min(6, significant - whole)));
}

export function times(value) {
  return value === null || value === undefined ? NONE : `${value.toFixed(2)}×`;
}

export function percent(value, places = 1) {
  return value === null || value === undefined ? NONE : `${(value * 100).toFixed(places)} %`;
}

export function count(value) {
  if (value === null || value === undefined) return NONE;
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${digits(value / size, 3)} ${unit}`;
  }
  return String(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (value >= size) return `${digits(value / size, 3)} ${unit}`;
  }
  return `${value} B`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const s = Math.max(0, seconds);
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 100) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(Math.round(s % 60)).padStart(2, "0")} s`.replace(" 60 s", " 59 s");
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function ago(iso, now = Date.now()) {
  return iso ? `${duration((now - Date.parse(iso)) / 1000)} ago` : NONE;
}

export function moment(iso) {
  return iso ? new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : NONE;
}

export function shortDigest(digest) {
  return digest ? digest.replace("sha256:", "").slice(0, 12) : NONE;
}

export function interval(low, high, unit = "") {
  const places = Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(Math.max(Math.abs(high), 1e-9)) + 1)));
  return `${low.toFixed(places)} – ${high.toFixed(places)}${unit}`;
}
