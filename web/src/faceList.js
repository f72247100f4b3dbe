// The list beside a photo: for each face its picture, age, interval, distribution and the
// probability of the age asked for.

import { distributionChart } from "./chart.js";
import { element } from "./dom.js";
import { faceColour } from "./drawing.js";
import { thresholdText } from "./words.js";

/**
 * @param faces of predictor.js.
 * @param crops pictures (see pillow.js) of these faces.
 * @param ageBins years.
 * @param threshold Threshold.
 * @returns { list, forget }: the element, and a function that frees what it listens to.
 */
export function faceList(faces, crops, ageBins, threshold) {
  const items = faces.map((face, i) => faceItem(face, crops[i], i, ageBins, threshold.age));
  const list = element("ol.faces", {}, ...items.map(({ item }) => item));
  const forget = threshold.listen((age) => items.forEach(({ setThreshold }) => setThreshold(age)));
  return { list, forget };
}

function faceItem(face, crop, index, ageBins, threshold) {
  const { chart, setThreshold: moveLine } = distributionChart(face, ageBins, threshold);
  const age = element("span.at-least-age");
  const probability = element("strong.probability");
  const item = element("li.face", {},
    thumbnail(crop),
    element("p.age", {}, element("span.age-number", {}, face.age.toFixed()), " years"),
    element("p.interval", {}, `80% interval ${face.low.toFixed()}–${face.high.toFixed()}`),
    chart,
    element("p.at-least", {}, age, " ", probability));
  item.style.setProperty("--face", faceColour(index));

  function setThreshold(years) {
    moveLine(years);
    age.textContent = `At least ${years} years:`;
    probability.textContent = thresholdText(face.probs, ageBins, years);
  }
  setThreshold(threshold);
  return { item, setThreshold };
}

function thumbnail({ width, height, data }) {
  const canvas = element("canvas.thumbnail", { width, height, aria: { hidden: "true" } });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  return canvas;
}
