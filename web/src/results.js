// The lines of results.csv and results.jsonl, as media/results.py has them.

import { roundHalfEven } from "./numbers.js";

export const FACE_FIELDS = ["x1", "y1", "x2", "y2", "confidence", "roll_deg", "age", "median",
                            "std", "low", "high"];
export const FIELDS = ["file", "face", ...FACE_FIELDS, "status"];
const DECIMALS = { confidence: 4 }; // of all other numbers 2
const PROB_DECIMALS = 6;
export const OK = "ok";
export const NO_FACE = "no face";
export const UNREADABLE = "unreadable"; // a reason follows

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
