// What components share: data that keeps itself fresh, the route, the colours, charts that follow their box.

import { useCallback, useEffect, useRef, useState } from "../vendor/preact.js";
import { getIfChanged, retryDelay } from "./api.js";
import { parseRoute } from "./route.js";

export function useRoute() {
  const [route, setRoute] = useState(() => parseRoute(location.hash));
  useEffect(() => {
    const changed = () => setRoute(parseRoute(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

/**
 * The JSON of a path, asked again every `everyMs` while the page is looked at (0: only when `reload` is called).
 * What was there stays while the server is away: `error` tells it beside the data.
 */
export function useData(path, everyMs = 0) {
  const [state, setState] = useState({ data: null, error: null });
  const timer = useRef(0);
  const failures = useRef(0);
  const current = useRef(path);
  const load = useCallback(async () => {
    clearTimeout(timer.current);
    if (!path) return;
    let next = everyMs;
    try {
      const data = await getIfChanged(path);
      if (current.current !== path) return;
      failures.current = 0;
      setState((before) => (before.data === data && !before.error ? before : { data, error: null }));
    } catch (error) {
      if (current.current !== path) return;
      setState((before) => ({ data: before.data, error }));
      if (error.status !== 0 && error.status < 500) return;
      next = Math.max(everyMs, retryDelay(failures.current));
      failures.current += 1;
    }
    if (next) timer.current = setTimeout(() => (document.hidden ? waitUntilSeen(load) : load()), next);
  }, [path, everyMs]);
  useEffect(() => {
    if (current.current !== path) setState({ data: null, error: null });
    current.current = path;
    load();
    return () => clearTimeout(timer.current);
  }, [load]);
  return { ...state, reload: load };
}

function waitUntilSeen(then) {
  const seen = () => {
    if (document.hidden) return;
    document.removeEventListener("visibilitychange", seen);
    then();
  };
  document.addEventListener("visibilitychange", seen);
}

/** Run `callback` at most every `ms`, the last call never lost. */
export function useThrottled(callback, ms) {
  const kept = useRef({ callback, timer: 0, last: 0 });
  kept.current.callback = callback;
  useEffect(() => () => clearTimeout(kept.current.timer), []);
  return useCallback(() => {
    const own = kept.current;
    if (own.timer) return;
    const wait = Math.max(0, own.last + ms - Date.now());
    own.timer = setTimeout(() => {
      own.timer = 0;
      own.last = Date.now();
      own.callback();
    }, wait);
  }, [ms]);
}

export function useNow(everyMs = 1000) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => document.hidden || setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

const modules = new Map();

/** A part of the page that is fetched when it is first wanted; null until it is here. */
export function useLazy(name, loaders, pick) {
  const [, again] = useState(0);
  useEffect(() => {
    if (modules.has(name) || !loaders[name]) return;
    loaders[name]().then((module) => {
      modules.set(name, pick(module));
      again((count) => count + 1);
    }, () => {
      // The server has another version by now, whose files have other names; once, so that a broken one does not loop.
      if (sessionStorage.getItem("pruneloop.reloaded") === name) return;
      sessionStorage.setItem("pruneloop.reloaded", name);
      location.reload();
    });
  }, [name]);
  return modules.get(name) || null;
}

export function useTitle(title) {
  useEffect(() => {
    document.title = title ? `${title} · Pruneloop` : "Pruneloop";
  }, [title]);
}

/** The colours of the theme as canvas needs them; changes when the theme does. */
export function usePalette() {
  const [palette, setPalette] = useState(readPalette);
  useEffect(() => {
    const again = () => setPalette(readPalette());
    const media = matchMedia("(prefers-color-scheme: dark)");
    media.addEventListener("change", again);
    addEventListener("pruneloop:theme", again);
    return () => {
      media.removeEventListener("change", again);
      removeEventListener("pruneloop:theme", again);
    };
  }, []);
  return palette;
}

function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: read("ink"), soft: read("soft"), line: read("line"), card: read("card"), accent: read("accent"),
    good: read("good"), warn: read("warn"), bad: read("bad"), cloud: read("cloud"), dense: read("dense"),
    fp32: read("fp32"), fp16: read("fp16"), int8: read("int8"),
    kinds: { prepare: read("kind-prepare"), candidate: read("kind-candidate"), final: read("kind-final"), measurement: read("kind-measurement") },
    series: [1, 2, 3, 4, 5, 6].map((number) => read(`series-${number}`)),
    heat: [read("heat-0"), read("heat-1"), read("heat-2")],
  };
}

/** A box for a chart: `make(element, size, props)` gives `{update, destroy}`; redrawn when its size or the props change. */
export function useChart(make, props) {
  const box = useRef(null);
  const chart = useRef(null);
  const latest = useRef(props);
  latest.current = props;
  useEffect(() => {
    const element = box.current;
    const draw = () => {
      const width = Math.floor(element.clientWidth);
      if (!width) return;
      if (!chart.current) chart.current = make(element);
      chart.current.update(width, latest.current);
    };
    const observer = new ResizeObserver(draw);
    observer.observe(element);
    chart.redraw = draw;
    return () => {
      observer.disconnect();
      chart.current?.destroy?.();
      chart.current = null;
    };
  }, []);
  useEffect(() => chart.redraw?.());
  return box;
}
