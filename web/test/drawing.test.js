import assert from "node:assert/strict";
import { test } from "node:test";

import { ageText, curveBetween, place, ticks } from "../src/drawing.js";
import { FaceTracker, MAX_MISSES, matchBoxes } from "../src/tracking.js";

const AGES = [0, 1, 2, 3, 4];

test("the text of a face", () => {
  assert.equal(ageText({ age: 34.4, low: 28.6, high: 40.2 }), "34, 29-40");
});

test("a label moves into the picture and off what is taken", () => {
  const spots = [{ x: -5, y: -5, width: 20, height: 10 }, { x: 40, y: 40, width: 20, height: 10 }];
  assert.deepEqual(place(spots, [100, 100], []), { x: 0, y: 0, width: 20, height: 10 });
  const taken = [{ x: 0, y: 0, width: 10, height: 10 }];
  assert.deepEqual(place(spots, [100, 100], taken), spots[1]);
});

test("round ages below a plot", () => {
  assert.deepEqual(ticks(0, 100, 6), [0, 20, 40, 60, 80, 100]);
  assert.deepEqual(ticks(0, 100, 3.1), [0, 50, 100]);
});

test("a curve meets the ends of an interval between two ages", () => {
  const curve = curveBetween([0, 0.2, 0.6, 0.2, 0], AGES, 1.5, 4);
  assert.deepEqual(curve.map(([age]) => age), [1.5, 2, 3, 4]);
  assert.ok(Math.abs(curve[0][1] - 0.4) < 1e-12);
  assert.equal(curve.at(-1)[1], 0);
});

test("boxes are matched best first, each once", () => {
  const tracked = [[0, 0, 10, 10], [20, 0, 30, 10]];
  const detected = [[21, 0, 31, 10], [1, 0, 11, 10], [50, 50, 60, 60]];
  assert.deepEqual([...matchBoxes(tracked, detected)].sort(), [[0, 1], [1, 0]]);
});

test("a face keeps its number, its age is averaged, and it ends after some misses", () => {
  const tracker = new FaceTracker({ ageBins: AGES, decode: "mean" });
  const at = (x, probs) =>
    ({ x1: x, y1: 0, x2: x + 10, y2: 10, confidence: 1, roll_deg: 0, probs });
  tracker.update([at(0, [1, 0, 0, 0, 0])]);
  const [{ number, face }] = tracker.update([at(2, [0, 0, 0, 0, 1])]);
  assert.equal(number, 1);
  assert.equal(face.age, 2);
  assert.ok(Math.abs(face.x1 - 1.2) < 1e-12); // 60% of the way
  for (let miss = 0; miss < MAX_MISSES; miss++) assert.deepEqual(tracker.update([]), []);
  assert.equal(tracker.update([at(2, [1, 0, 0, 0, 0])])[0].number, 2);
});
