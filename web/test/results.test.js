import assert from "node:assert/strict";
import { test } from "node:test";

import {
  centralInterval, distributionMean, distributionMedian, distributionStd, probabilityOfAtLeast,
} from "../src/metrics.js";
import { faceFromProbs } from "../src/predictor.js";
import { distinctName } from "../src/photoList.js";
import { FIELDS, resultRows, toCsv, toJsonLines, toTabs } from "../src/results.js";
import { browserProblem, thresholdText } from "../src/words.js";

const AGES = [0, 1, 2, 3, 4];
const EVEN = [0.2, 0.2, 0.2, 0.2, 0.2];

function near(value, expected) {
  assert.ok(Math.abs(value - expected) < 1e-12, `${value} is not ${expected}`);
}

test("an even distribution", () => {
  near(distributionMean(EVEN, AGES), 2);
  near(distributionMedian(EVEN, AGES), 2);
  near(distributionStd(EVEN, AGES), Math.sqrt(2));
  const [low, high] = centralInterval(EVEN, AGES, 0.8); // 10% of 5 years from each end
  near(low, 0);
  near(high, 4);
  const [first, last] = centralInterval(EVEN, AGES, 0.5);
  near(first, 0.75);
  near(last, 3.25);
});

test("a certain age", () => {
  const sure = [0, 0, 0, 1, 0];
  near(distributionMean(sure, AGES), 3);
  near(distributionStd(sure, AGES), 0);
  const [low, high] = centralInterval(sure, AGES, 0.8);
  near(low, 2.6);
  near(high, 3.4);
});

test("an interval stays within the ages", () => {
  const [low] = centralInterval([1, 0, 0, 0, 0], AGES, 0.8);
  assert.equal(low, 0);
});

test("the probability of an age counts that age and all above", () => {
  near(probabilityOfAtLeast(EVEN, AGES, 3), 0.4);
  near(probabilityOfAtLeast(EVEN, AGES, 0), 1);
  assert.equal(probabilityOfAtLeast(EVEN, AGES, 5), 0);
  assert.equal(thresholdText(EVEN, AGES, 3), "40.0%");
  assert.equal(thresholdText(EVEN, AGES, 0), "over 99.9%");
  assert.equal(thresholdText(EVEN, AGES, 5), "under 0.1%");
});

test("a table has the demo's columns, one line a face", () => {
  const face = faceFromProbs([1.005, 2, 3.14159, 4], 0.99996, -3.5, EVEN, AGES, "mean");
  const rows = resultRows('a "b", c.jpg', [face, face]);
  const [head, first, second] = toCsv(rows).split("\n");
  assert.equal(head, "file,face,x1,y1,x2,y2,confidence,roll_deg,age,median,std,low,high,status");
  assert.equal(first, '"a ""b"", c.jpg",1,1,2,3.14,4,1,-3.5,2,2,1.41,0,4,ok');
  assert.match(second, /,2,1,2,3.14/);
  assert.equal(toTabs(rows).split("\n")[1].split("\t").length, FIELDS.length);
  const [line] = toJsonLines(rows).split("\n");
  assert.deepEqual(Object.keys(JSON.parse(line)), [...FIELDS, "probs"]);
  assert.deepEqual(JSON.parse(line).probs, EVEN);
});

test("a photo without a face and an unreadable one have a line too", () => {
  assert.equal(toCsv(resultRows("a.jpg", [])).split("\n")[1], "a.jpg,,,,,,,,,,,,,no face");
  const [row] = resultRows("b.jpg", [], "unreadable: why");
  assert.equal(row.status, "unreadable: why");
  assert.equal(row.probs, null);
});

test("a name that is taken gets a number before its ending", () => {
  const taken = new Set(["a.jpg", "a (2).jpg", "day.1/b"]);
  assert.equal(distinctName("a.jpg", taken), "a (3).jpg");
  assert.equal(distinctName("b.jpg", taken), "b.jpg");
  assert.equal(distinctName("day.1/b", taken), "day.1/b (2)");
});

test("what a browser lacks is named, and no version", () => {
  assert.match(browserProblem(), /it lacks OffscreenCanvas, Worker\. Take a newer/); // as Node does
  assert.doesNotMatch(browserProblem(), /\d/);
});
