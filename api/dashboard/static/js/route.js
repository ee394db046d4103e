// Routes live in the hash: "#/jobs/ID?target=1&tab=layers". Pure.

/** @returns {{path: string[], query: URLSearchParams}} */
export function parseRoute(hash) {
  const text = hash.replace(/^#\/?/, "");
  const cut = text.indexOf("?");
  const path = (cut < 0 ? text : text.slice(0, cut)).split("/").filter(Boolean).map(decodeSafely);
  return { path: path.length ? path : ["jobs"], query: new URLSearchParams(cut < 0 ? "" : text.slice(cut + 1)) };
}

/** Return the hash of a path and a query: an object whose empty values are left out and whose arrays repeat. */
export function routeTo(path, query = {}) {
  const found = new URLSearchParams();
  for (const [name, value] of query instanceof URLSearchParams ? query : Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== "" && one !== null && one !== undefined) found.append(name, String(one));
    }
  }
  const text = found.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

function decodeSafely(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
