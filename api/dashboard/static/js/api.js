// The public API, and nothing else: what this page can do, a script can.

const WHO = "pruneloop.who"; // name, scopes and end of the session: the secret itself is a cookie no script can read
const RETRY_MS = [500, 1000, 2000, 4000];
const kept = new Map();
let onLoggedOut = () => {};
let onConnection = () => {};

/** A refusal as the server says it (RFC 9457), or `status` 0 where no answer came. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `The server answered ${status}.`);
    this.status = status;
    this.code = body.code || "";
    this.fields = body.errors || [];
  }
}

export const session = {
  get who() {
    try {
      return JSON.parse(localStorage.getItem(WHO));
    } catch {
      return null;
    }
  },
  get isOpen() {
    return Boolean(this.who) && Date.parse(this.who.expires_at) > Date.now();
  },
  /** Whether this person may do what a scope allows: reading, submitting, or all. */
  can(scope) {
    const order = ["read", "submit", "admin"];
    return Boolean(this.who?.scopes.some((own) => order.indexOf(own) >= order.indexOf(scope)));
  },
  /** Change a token for a session. Throws Problem. */
  async open(token) {
    const who = await request("/v1/session", { method: "POST", json: { token } });
    localStorage.setItem(WHO, JSON.stringify(who));
  },
  async close() {
    if (this.isOpen) await request("/v1/session", { method: "DELETE" }).catch(() => {});
    localStorage.removeItem(WHO);
    kept.clear();
  },
  whenClosed(told) {
    onLoggedOut = told;
  },
  whenConnection(told) {
    onConnection = told;
  },
};

/** Send a request and return the Response. Throws Problem; a 401 also leads to the log-in. */
export async function send(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (json !== undefined) sent["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body: json === undefined ? body : JSON.stringify(json), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    onConnection(false);
    throw new Problem(0, { detail: "The server does not answer. This page tries again by itself." });
  }
  onConnection(true);
  if (answer.ok) return answer;
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // Not ours: a proxy's page, perhaps.
  }
  const problem = new Problem(answer.status, told);
  if (answer.status === 401 && session.who) {
    localStorage.removeItem(WHO);
    kept.clear();
    onLoggedOut(problem);
  }
  throw problem;
}

export async function request(path, options) {
  const answer = await send(path, options);
  return answer.status === 204 ? null : answer.json();
}

export const get = (path, options) => request(path, options);
export const post = (path, json, options = {}) => request(path, { method: "POST", json, ...options });

/** GET that gives the very same object while the server's ETag is the same: nothing is drawn again for nothing. */
export async function getIfChanged(path, options) {
  const answer = await send(path, options);
  const etag = answer.headers.get("etag");
  const known = kept.get(path);
  if (etag && known?.etag === etag) {
    answer.body?.cancel();
    return known.data;
  }
  const data = await answer.json();
  if (etag) {
    kept.set(path, { etag, data });
    if (kept.size > 60) kept.delete(kept.keys().next().value);
  }
  return data;
}

/** Every item of a paged list, up to so many. */
export async function getAll(path, most = 2000) {
  const items = [];
  let token = "";
  do {
    const joint = path.includes("?") ? "&" : "?";
    const page = await get(`${path}${joint}page_size=500${token ? `&page_token=${encodeURIComponent(token)}` : ""}`);
    items.push(...page.items);
    token = page.next_page_token;
  } while (token && items.length < most);
  return items;
}

export function retryDelay(failures) {
  return RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
}

/** Fetch an artifact, check its sha256 where the browser can, and hand it to the person. Returns whether it was checked. */
export async function download(digest, name) {
  const blob = await (await send(`/v1/artifacts/${digest}`)).blob();
  let isChecked = false;
  if (globalThis.crypto?.subtle) {
    const hash = await crypto.subtle.digest("SHA-256", await blob.arrayBuffer());
    const hex = [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (`sha256:${hex}` !== digest) throw new Problem(0, { detail: `The file that came is not ${digest}; download it again.` });
    isChecked = true;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  return isChecked;
}
