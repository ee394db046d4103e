// Parallel coordinates: an axis a value, a line a trial; drag along an axis to keep only what passes there.

import { sized, tooltip } from "./plot.js";

const TOP = 34;
const BOTTOM = 26;

/** Props: {palette, axes: [{name, values, format}], colors: [0..1 or null], labels: [text], ramp, onPick(index)}. */
export function parallelChart(box) {
  const canvas = document.createElement("canvas");
  box.append(canvas);
  const tip = tooltip(box);
  let props = null;
  let width = 0;
  let hovered = null;
  let brushes = new Map();
  let drag = null;
  const height = 340;

  const xOf = (axis) => 46 + (axis * (width - 92)) / Math.max(1, props.axes.length - 1);
  const yOf = (axis, value) => {
    const { low, high } = props.axes[axis];
    return height - BOTTOM - ((value - low) / (high - low || 1)) * (height - TOP - BOTTOM);
  };
  const isKept = (index) => [...brushes].every(([axis, [from, to]]) => {
    const value = props.axes[axis]?.values[index];
    if (value === null || value === undefined) return false;
    const y = yOf(axis, value);
    return y >= Math.min(from, to) && y <= Math.max(from, to);
  });

  function draw() {
    const context = sized(canvas, width, height);
    const count = props.labels.length;
    const line = (index, color, weight, alpha) => {
      context.globalAlpha = alpha;
      context.strokeStyle = color;
      context.lineWidth = weight;
      context.beginPath();
      let isDown = false;
      props.axes.forEach((axis, place) => {
        const value = axis.values[index];
        if (value === null || value === undefined) {
          isDown = false;
          return;
        }
        if (isDown) context.lineTo(xOf(place), yOf(place, value));
        else context.moveTo(xOf(place), yOf(place, value));
        isDown = true;
      });
      context.stroke();
    };
    const alpha = Math.max(0.12, Math.min(0.7, 60 / count));
    for (let index = 0; index < count; index += 1) if (!isKept(index)) line(index, props.palette.line, 1, 0.35);
    for (let index = 0; index < count; index += 1) if (isKept(index)) line(index, colorOf(index), 1.4, alpha);
    if (hovered !== null) line(hovered, props.palette.ink, 2.5, 1);
    context.globalAlpha = 1;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    props.axes.forEach((axis, place) => {
      const x = xOf(place);
      context.strokeStyle = props.palette.soft;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(x, TOP);
      context.lineTo(x, height - BOTTOM);
      context.stroke();
      context.fillStyle = props.palette.ink;
      const room = Math.max(6, Math.floor((width - 92) / Math.max(1, props.axes.length - 1) / 6.2));
      context.fillText(axis.name.length > room ? `…${axis.name.slice(-(room - 1))}` : axis.name, x, 12);
      context.fillStyle = props.palette.soft;
      context.fillText(axis.format(axis.high), x, TOP - 7);
      context.fillText(axis.format(axis.low), x, height - 9);
      const brush = brushes.get(place);
      if (brush) {
        context.globalAlpha = 0.25;
        context.fillStyle = props.palette.accent;
        context.fillRect(x - 8, Math.min(...brush), 16, Math.abs(brush[1] - brush[0]));
        context.globalAlpha = 1;
      }
    });
  }

  const colorOf = (index) => {
    const value = props.colors[index];
    return value === null ? props.palette.cloud : `rgb(${props.ramp[Math.round(value * 255)].slice(0, 3).join(" ")})`;
  };

  function axisAt(x) {
    let best = 0;
    props.axes.forEach((_, place) => {
      if (Math.abs(xOf(place) - x) < Math.abs(xOf(best) - x)) best = place;
    });
    return Math.abs(xOf(best) - x) < 12 ? best : null;
  }

  function lineAt(x, y) {
    const left = Math.max(0, Math.min(props.axes.length - 2, Math.floor(((x - 46) * (props.axes.length - 1)) / (width - 92))));
    const share = (x - xOf(left)) / (xOf(left + 1) - xOf(left) || 1);
    let best = null;
    let least = 7;
    for (let index = 0; index < props.labels.length; index += 1) {
      const from = props.axes[left].values[index];
      const to = props.axes[left + 1]?.values[index];
      if (from === null || to === null || to === undefined || !isKept(index)) continue;
      const distance = Math.abs(yOf(left, from) * (1 - share) + yOf(left + 1, to) * share - y);
      if (distance < least) {
        least = distance;
        best = index;
      }
    }
    return best;
  }

  canvas.addEventListener("pointerdown", (event) => {
    const axis = axisAt(event.offsetX);
    if (axis === null) return;
    drag = { axis, from: event.offsetY };
    brushes.delete(axis);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      brushes.set(drag.axis, [drag.from, event.offsetY]);
      draw();
      return;
    }
    const found = lineAt(event.offsetX, event.offsetY);
    if (found !== hovered) {
      hovered = found;
      draw();
    }
    canvas.style.cursor = axisAt(event.offsetX) !== null ? "ns-resize" : found !== null ? "pointer" : "";
    if (found === null) tip.hide();
    else tip.show([props.labels[found]], event.offsetX, event.offsetY);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!drag) return;
    if (Math.abs(event.offsetY - drag.from) < 4) brushes.delete(drag.axis);
    drag = null;
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    hovered = null;
    tip.hide();
    draw();
  });
  canvas.addEventListener("click", () => hovered !== null && !drag && props.onPick?.(hovered));

  return {
    update(given, next) {
      width = given;
      const shape = next.axes.map((axis) => axis.name).join();
      if (props && shape !== props.axes.map((axis) => axis.name).join()) brushes = new Map();
      props = { ...next, axes: next.axes.map((axis) => ({ ...axis, ...ends(axis.values) })) };
      draw();
    },
    destroy() {
      canvas.remove();
    },
  };
}

function ends(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return { low: Math.min(...known), high: Math.max(...known) };
}
