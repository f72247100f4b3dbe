// What is known about a face, and the lines of results.csv and results.jsonl, as results.py has
// them.

import { DECODES, centralInterval, distributionMedian, distributionStd } from "./metrics.js";
import { roundHalfEven } from "./numbers.js";

export const INTERVAL_SHARE = 0.8; // of the distribution that lies within low..high
export const FACE_FIELDS = ["x1", "y1", "x2", "y2", "confidence", "roll_deg", "age", "median",
                            "std", "low", "high"];
export const FIELDS = ["file", "face", ...FACE_FIELDS, "status"];
export const DECIMALS = { confidence: 4 }; // of all other numbers 2
const PROB_DECIMALS = 6;
export const OK = "ok";
export const NO_FACE = "no face";

/**
 * A face from where it is and how its age is distributed; its fields are those of the tables.
 *
 * @param box [x1, y1, x2, y2] pixels.
 * @param confidence the detector's, 0..1.
 * @param rollDeg degrees.
 * @param probs distribution over ageBins.
 * @param decode of metrics.DECODES.
 */
export function faceFromProbs([x1, y1, x2, y2], confidence, rollDeg, probs, ageBins, decode) {
  const [low, high] = centralInterval(probs, ageBins, INTERVAL_SHARE);
  return {
    x1, y1, x2, y2, confidence, roll_deg: rollDeg,
    age: DECODES[decode](probs, ageBins),
    median: distributionMedian(probs, ageBins),
    std: distributionStd(probs, ageBins),
    low, high, probs,
  };
}

/** One row a face, or one row that says why there is none. Numbers are rounded. */
export function resultRows(file, faces, status = OK) {
  if (!faces.length) return [row({ file, status: status === OK ? NO_FACE : status })];
  return faces.map((face, index) => row({ file, face: index + 1, ...face, status }));
}

function row(values) {
  const { probs = null } = values;
  const fields = FIELDS.map((name) => [name, rounded(name, values[name] ?? null)]);
  return {
    ...Object.fromEntries(fields),
    probs: probs && Array.from(probs, (prob) => roundHalfEven(prob, PROB_DECIMALS)),
  };
}

function rounded(name, value) {
  return typeof value === "number" ? roundHalfEven(value, DECIMALS[name] ?? 2) : value;
}

/** Text of results.csv: a line of names, then one line a row. */
export function toCsv(rows) {
  const lines = rows.map((values) => FIELDS.map((name) => csvCell(values[name])));
  return [FIELDS, ...lines].map((cells) => `${cells.join(",")}\n`).join("");
}

/** The same for pasting into a spreadsheet: cells between tabs. */
export function toTabs(rows) {
  const cell = (value) => String(value ?? "").replaceAll(/[\t\r\n]/g, " ");
  const lines = rows.map((values) => FIELDS.map((name) => cell(values[name])));
  return [FIELDS, ...lines].map((cells) => `${cells.join("\t")}\n`).join("");
}

function csvCell(value) {
  const text = String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Text of results.jsonl: one JSON object a row, with the distribution. */
export function toJsonLines(rows) {
  return rows.map((values) => `${JSON.stringify(values)}\n`).join("");
}
