// The distribution of one face in the page's own colours, with the age asked for.

import { svg } from "./dom.js";
import { curveBetween, ticks } from "./drawing.js";

const WIDTH = 320;
const HEIGHT = 84;
const SIDE = 12; // room for the outer ages' digits
const BASE = 64;
const TOP = 8;

/**
 * SVG of a distribution: the central interval bright, the age a line, the threshold a dashed one.
 *
 * @param face of predictor.js.
 * @param ageBins years.
 * @param threshold years; setThreshold() of the result moves it.
 * @returns { chart, setThreshold }.
 */
export function distributionChart(face, ageBins, threshold) {
  const [first, last] = [ageBins[0], ageBins.at(-1)];
  const highest = Math.max(...face.probs);
  const across = (age) => SIDE + ((age - first) / (last - first)) * (WIDTH - 2 * SIDE);
  const up = (prob) => BASE - (prob / highest) * (BASE - TOP);

  function areaBetween(low, high, className) {
    const points = curveBetween(face.probs, ageBins, low, high)
      .map(([age, prob]) => `${across(age).toFixed(1)} ${up(prob).toFixed(1)}`);
    const path = `M${across(low).toFixed(1)} ${BASE}L${points.join("L")}`
      + `L${across(high).toFixed(1)} ${BASE}Z`;
    return svg("path", { class: className, d: path });
  }

  const dashed = svg("line", { class: "chart-threshold", y1: TOP - 4, y2: BASE });
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
                             "aria-hidden": "true" },
    areaBetween(first, last, "chart-all"),
    areaBetween(face.low, face.high, "chart-interval"),
    svg("line", { class: "chart-base", x1: across(first), x2: across(last), y1: BASE, y2: BASE }),
    dashed,
    svg("line", { class: "chart-age", x1: across(face.age), x2: across(face.age), y1: TOP - 4,
                  y2: BASE }),
    ...ticks(first, last, 6).map((age) =>
      svg("text", { class: "chart-tick", x: across(age), y: BASE + 16 }, String(age))));

  function setThreshold(age) {
    // Between the bins: the probability is that of this age and all above.
    const x = across(Math.max(age - 0.5, first));
    dashed.setAttribute("x1", x);
    dashed.setAttribute("x2", x);
  }
  setThreshold(threshold);
  return { chart, setThreshold };
}
