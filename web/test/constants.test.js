// What the page repeats of the Python modules is the same there. Needs the demo's Python: the
// variable PYTHON, or python3.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { NETWORK_FILES } from "../networkFiles.js";
import * as detector from "../src/detector.js";
import * as drawing from "../src/drawing.js";
import * as face from "../src/face.js";
import * as folders from "../src/folders.js";
import * as metrics from "../src/metrics.js";
import * as mtcnn from "../src/mtcnn.js";
import * as predictor from "../src/predictor.js";
import * as results from "../src/results.js";
import * as tracking from "../src/tracking.js";

const MODULES = { mtcnn, detector, face, folders, metrics, predictor, results, drawing, tracking };
const python = JSON.parse(execFileSync(process.env.PYTHON ?? "python3", [
  fileURLToPath(new URL("constants.py", import.meta.url))]));

test("the constants of the Python modules", () => {
  for (const [module, constants] of Object.entries(python.constants)) {
    for (const [name, value] of Object.entries(constants)) {
      assert.deepEqual(MODULES[module][name], value, `${module}.${name}`);
    }
  }
});

test("the files of the networks", () => {
  assert.deepEqual(Object.values(NETWORK_FILES), python.networks);
});

test("the rows of the demo's tables, rounded alike", () => {
  const { face: found, with: row, without } = python.rows;
  assert.deepEqual(results.resultRows("photo.jpg", [found]), row);
  assert.deepEqual(results.resultRows("photo.jpg", []), without);
});
