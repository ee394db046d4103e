// Who did what when: a lane a builder or device, a bar a piece of work, a thin line before it while it waited.

import { duration } from "../format.js";
import { sized, tooltip } from "./plot.js";

const LEFT = 150;
const TOP = 8;
const BOTTOM = 28;

/** Props: {palette, lanes: [{name, spans}], end, describe(span), onPick(span)}. Seconds since the job was submitted. */
export function timelineChart(box) {
  const canvas = document.createElement("canvas");
  box.append(canvas);
  const tip = tooltip(box);
  let props = null;
  let bars = [];
  let view = null;
  let width = 0;
  let drag = null;

  const xOf = (seconds) => LEFT + ((seconds - view[0]) / (view[1] - view[0])) * (width - LEFT - 8);
  const at = (event) => bars.findLast((bar) => event.offsetX >= bar.x - 2 && event.offsetX <= bar.x + bar.w + 2 && event.offsetY >= bar.y && event.offsetY <= bar.y + bar.h);

  function draw() {
    const line = Math.max(22, Math.min(40, 260 / Math.max(1, props.lanes.length)));
    const height = TOP + props.lanes.length * line + BOTTOM;
    const context = sized(canvas, width, height);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    bars = [];
    const span = view[1] - view[0];
    const step = niceStep(span / Math.max(2, (width - LEFT) / 110));
    context.textAlign = "center";
    for (let tick = Math.ceil(view[0] / step) * step; tick <= view[1]; tick += step) {
      context.strokeStyle = props.palette.line;
      context.beginPath();
      context.moveTo(xOf(tick), TOP);
      context.lineTo(xOf(tick), height - BOTTOM);
      context.stroke();
      context.fillStyle = props.palette.soft;
      context.fillText(duration(tick), xOf(tick), height - BOTTOM / 2);
    }
    context.save();
    props.lanes.forEach((lane, index) => {
      const y = TOP + index * line + 3;
      context.restore();
      context.save();
      context.textAlign = "right";
      context.fillStyle = props.palette.ink;
      context.fillText(lane.name.length > 20 ? `${lane.name.slice(0, 19)}…` : lane.name, LEFT - 10, y + line / 2 - 3);
      context.beginPath();
      context.rect(LEFT, 0, width - LEFT, height);
      context.clip();
      for (const one of lane.spans) {
        const color = props.palette.kinds[one.kind];
        const start = one.started_s ?? one.asked_s;
        const end = one.finished_s ?? (one.started_s === null ? one.asked_s : props.end);
        const x = xOf(start);
        const w = Math.max(1.5, xOf(end) - x);
        if (one.started_s !== null && one.started_s - one.asked_s > span / 500) {
          context.fillStyle = color;
          context.globalAlpha = 0.35;
          context.fillRect(xOf(one.asked_s), y + line / 2 - 4, x - xOf(one.asked_s), 2);
          context.globalAlpha = 1;
        }
        context.fillStyle = one.state === "failed" ? props.palette.bad : color;
        context.globalAlpha = one.state === "leased" ? 0.6 : 1;
        context.fillRect(x, y, w, line - 6);
        context.globalAlpha = 1;
        if (w > 3) {
          context.fillStyle = props.palette.card;
          context.fillRect(x + w - 0.75, y, 0.75, line - 6);
        }
        bars.push({ x, y, w, h: line - 6, span: one });
      }
    });
    context.restore();
  }

  canvas.addEventListener("mousemove", (event) => {
    if (drag) {
      const shift = ((drag.x - event.offsetX) / (width - LEFT - 8)) * (drag.view[1] - drag.view[0]);
      view = [drag.view[0] + shift, drag.view[1] + shift];
      draw();
      return;
    }
    const found = at(event);
    canvas.style.cursor = found ? "pointer" : "grab";
    if (found) tip.show(props.describe(found.span), event.offsetX, event.offsetY);
    else tip.hide();
  });
  canvas.addEventListener("mousedown", (event) => {
    drag = { x: event.offsetX, view };
  });
  addEventListener("mouseup", stopDrag);
  canvas.addEventListener("mouseleave", () => tip.hide());
  canvas.addEventListener("click", (event) => {
    const found = at(event);
    if (found) props.onPick?.(found.span);
  });
  canvas.addEventListener("dblclick", () => {
    view = [0, props.end];
    draw();
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    const here = view[0] + ((event.offsetX - LEFT) / (width - LEFT - 8)) * (view[1] - view[0]);
    const factor = event.deltaY > 0 || event.deltaX > 0 ? 1.25 : 0.8;
    view = [here - (here - view[0]) * factor, here + (view[1] - here) * factor];
    draw();
  }, { passive: false });

  function stopDrag() {
    drag = null;
  }

  return {
    update(given, next) {
      const isWhole = !view || (view[0] === 0 && view[1] === props.end);
      width = given;
      props = next;
      if (isWhole) view = [0, Math.max(1, props.end)];
      draw();
    },
    destroy() {
      removeEventListener("mouseup", stopDrag);
      canvas.remove();
    },
  };
}

export function niceStep(rough) {
  return [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400].find((step) => step >= rough) || 86400 * Math.ceil(rough / 86400);
}
