// A heat map on one canvas: a column a trial, a row a group; sixty thousand cells are drawn in a few milliseconds.

import { sized, tooltip } from "./plot.js";

const LEFT = 150;
const BOTTOM = 26;

/** Props: {palette, columns: [{number, values}], rows: [name], describe(row, column), onPick(column)}. Values 0..1. */
export function heatChart(box) {
  const canvas = document.createElement("canvas");
  box.append(canvas);
  const tip = tooltip(box);
  let props = null;
  let size = null;

  canvas.addEventListener("mousemove", (event) => {
    const at = cellAt(event);
    if (!at) return tip.hide();
    tip.show(props.describe(at.row, at.column), event.offsetX, event.offsetY);
    canvas.style.cursor = "pointer";
  });
  canvas.addEventListener("mouseleave", () => tip.hide());
  canvas.addEventListener("click", (event) => {
    const at = cellAt(event);
    if (at) props.onPick?.(at.column);
  });

  function cellAt(event) {
    const column = Math.floor((event.offsetX - LEFT) / size.cell);
    const row = Math.floor(event.offsetY / size.line);
    return column >= 0 && column < props.columns.length && row >= 0 && row < props.rows.length ? { row, column } : null;
  }

  return {
    update(width, given) {
      props = given;
      const line = Math.max(9, Math.min(22, Math.round(420 / Math.max(1, props.rows.length))));
      const height = props.rows.length * line + BOTTOM;
      size = { line, cell: (width - LEFT - 4) / Math.max(1, props.columns.length) };
      const context = sized(canvas, width, height);
      context.imageSmoothingEnabled = false;
      if (props.columns.length) context.drawImage(picture(props), LEFT, 0, width - LEFT - 4, props.rows.length * line);
      context.fillStyle = props.palette.soft;
      context.font = `${Math.min(12, line)}px system-ui, sans-serif`;
      context.textBaseline = "middle";
      context.textAlign = "right";
      const every = Math.ceil(10 / line);
      props.rows.forEach((name, row) => row % every || context.fillText(name.length > 22 ? `…${name.slice(-21)}` : name, LEFT - 8, (row + 0.5) * line));
      context.textAlign = "center";
      context.font = "12px system-ui, sans-serif";
      const step = Math.max(1, Math.ceil(props.columns.length / Math.max(2, Math.floor((width - LEFT) / 60))));
      for (let column = 0; column < props.columns.length; column += step) {
        context.fillText(String(props.columns[column].number), LEFT + (column + 0.5) * size.cell, height - BOTTOM / 2);
      }
    },
    destroy() {
      canvas.remove();
    },
  };
}

/** One pixel a cell; the browser stretches it. */
function picture({ columns, rows, palette }) {
  const small = document.createElement("canvas");
  small.width = columns.length;
  small.height = rows.length;
  const context = small.getContext("2d");
  const image = context.createImageData(small.width, small.height);
  const colors = ramp(palette.heat);
  columns.forEach(({ values }, column) => {
    values.forEach((value, row) => {
      const color = colors[Math.round(Math.max(0, Math.min(1, value)) * 255)];
      image.data.set(color, (row * columns.length + column) * 4);
    });
  });
  context.putImageData(image, 0, 0);
  return small;
}

export function ramp(stops) {
  const rgb = stops.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, index) => {
    const at = (index / 255) * (rgb.length - 1);
    const low = Math.min(rgb.length - 2, Math.floor(at));
    return [...rgb[low].map((value, place) => Math.round(value + (rgb[low + 1][place] - value) * (at - low))), 255];
  });
}
