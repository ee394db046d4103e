// Plain lines and dots over time or order: hypervolume, samples, golden ratios.

import { axis, tooltip, uPlot } from "./plot.js";

/**
 * Props: {palette, x, xLabel, yLabel, series: [{label, values, color, isDots, isStepped, band}], height, xValues, yValues, describe(index)}.
 * A series with `values` null at an index is not drawn there. `band`: [low, high] values drawn behind as a filled band.
 */
export function lineChart(box) {
  let plot = null;
  let props = null;
  let shape = "";
  const tip = tooltip(box);

  function build(width) {
    const { palette } = props;
    const series = [{}];
    const bands = [];
    for (const one of props.series) {
      series.push({
        label: one.label, stroke: one.color, width: one.isDots ? 0 : (one.width ?? 2), dash: one.dash,
        paths: one.isDots ? () => null : one.isStepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
        points: { show: Boolean(one.isDots), size: one.size ?? 5, fill: one.color, width: 0 }, spanGaps: false,
      });
      if (one.fillTo) bands.push({ series: [series.length - 1, one.fillTo], fill: one.fill });
    }
    plot = new uPlot(
      {
        width, height: props.height || 220, padding: [12, 12, 0, 0], legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
        scales: { x: { time: false }, y: { range: (u, low, high) => around(low, high) } },
        axes: [axis(palette, props.xLabel, { values: props.xValues, space: props.xSpace }), axis(palette, props.yLabel, { size: 62, values: props.yValues })],
        series, bands,
        hooks: {
          setCursor: [(u) => {
            const index = u.cursor.idx;
            if (index === null || index === undefined || u.cursor.left < 0 || !props.describe) return tip.hide();
            const lines = props.describe(index);
            return lines ? tip.show(lines, u.cursor.left + u.bbox.left / devicePixelRatio, 40) : tip.hide();
          }],
        },
      },
      [props.x, ...props.series.map((one) => one.values)],
      box,
    );
  }

  return {
    update(width, given) {
      props = given;
      const wanted = JSON.stringify([props.palette, props.height, props.xLabel, props.yLabel, props.series.map((one) => [one.label, one.color, one.isDots])]);
      if (plot && wanted !== shape) {
        plot.destroy();
        plot = null;
      }
      shape = wanted;
      if (!plot) build(width);
      else {
        if (plot.width !== width) plot.setSize({ width, height: props.height || 220 });
        plot.setData([props.x, ...props.series.map((one) => one.values)]);
      }
    },
    destroy() {
      plot?.destroy();
    },
  };
}

function around(low, high) {
  if (low === null || high === null) return [0, 1];
  const room = Math.max((high - low) * 0.1, Math.abs(high) * 0.01, 1e-6);
  return [low - room, high + room];
}
