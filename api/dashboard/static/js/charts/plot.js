// uPlot as we use it: axes in our colours, and room to draw points of our own on top.

import uPlot from "../../vendor/uplot.js";

export { uPlot };

const FONT = "12px system-ui, sans-serif";

export function axis(palette, label, options = {}) {
  // uPlot takes an undefined option for a wish, so only what is said is passed on.
  const said = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  return {
    label, ...said,
    labelFont: `600 ${FONT}`, labelSize: 22, font: FONT, stroke: palette.soft,
    grid: { stroke: palette.line, width: 1 }, ticks: { stroke: palette.line, width: 1, size: 5 },
  };
}

/** Give a canvas a size in CSS pixels, sharp on any screen; returns its context, cleared and scaled to them. */
export function sized(canvas, width, height) {
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  return context;
}

/** A circle, diamond, square or ring on a canvas. */
export function mark(context, shape, x, y, radius, { fill, stroke, width = 1.5 }) {
  context.beginPath();
  if (shape === "diamond") {
    context.moveTo(x, y - radius * 1.3);
    context.lineTo(x + radius * 1.3, y);
    context.lineTo(x, y + radius * 1.3);
    context.lineTo(x - radius * 1.3, y);
    context.closePath();
  } else if (shape === "square") {
    context.rect(x - radius * 0.9, y - radius * 0.9, radius * 1.8, radius * 1.8);
  } else {
    context.arc(x, y, radius, 0, 2 * Math.PI);
  }
  if (fill) {
    context.fillStyle = fill;
    context.fill();
  }
  if (stroke) {
    context.lineWidth = width * devicePixelRatio;
    context.strokeStyle = stroke;
    context.stroke();
  }
}

/** A line of text beside the pointer, kept inside its box. */
export function tooltip(box) {
  const element = document.createElement("div");
  element.className = "tip";
  element.hidden = true;
  box.append(element);
  return {
    show(lines, x, y) {
      element.replaceChildren(...lines.map((line, index) => Object.assign(document.createElement(index ? "div" : "strong"), { textContent: line })));
      element.hidden = false;
      const width = element.offsetWidth;
      const left = x + 16 + width > box.clientWidth ? x - 16 - width : x + 16;
      element.style.left = `${Math.max(4, left)}px`;
      element.style.top = `${Math.max(4, y - element.offsetHeight / 2)}px`;
    },
    hide() {
      element.hidden = true;
    },
  };
}
