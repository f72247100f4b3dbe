import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { cropFace, iou, resizeFace, rollFromLandmarks, rotationToCanvas, turnedBox }
  from "../src/face.js";
import { roundHalfEven } from "../src/numbers.js";
import { resize } from "../src/pillow.js";
import { pictureOf, pixelsOf } from "./pictures.js";

const golden = JSON.parse(readFileSync(new URL("golden.json", import.meta.url)));
const pictures = Object.fromEntries(
  Object.entries(golden.pictures).map(([name, picture]) => [name, pictureOf(picture)]));

function assertClose(values, expected, tolerance) {
  assert.equal(values.length, expected.length);
  values.forEach((value, i) => {
    assert.ok(Math.abs(value - expected[i]) <= tolerance, `${values} is not ${expected}`);
  });
}

test("resizes as Pillow does, to the last bit", () => {
  for (const { picture, size, pixels } of golden.resized) {
    assert.deepEqual(pixelsOf(resize(pictures[picture], size)), pixels);
  }
});

test("a picture that keeps its size keeps its pixels", () => {
  const { tall } = pictures;
  assert.deepEqual(resize(tall, [tall.width, tall.height]).data, tall.data);
});

test("cuts a face out of the turned photo as Pillow does, to the last bit", () => {
  for (const { picture, box, rollDeg, width, height, pixels } of golden.crops) {
    const crop = cropFace(pictures[picture], box, rollDeg, 0);
    assert.deepEqual([crop.width, crop.height], [width, height]);
    assert.deepEqual(pixelsOf(crop), pixels, `${picture} ${box} by ${rollDeg} degrees`);
  }
});

test("refuses an empty box", () => {
  assert.throws(() => cropFace(pictures.tall, [3, 3, 3.2, 9], 0, 0), /empty face box/);
});

test("a face becomes a square of the network's size", () => {
  const face = resizeFace(pictures.tall, 16);
  assert.deepEqual([face.width, face.height], [16, 16]);
});

test("turns the canvas and a box as face.py does", () => {
  for (const { size, rollDeg, canvasSize, inverse, turnedBox: expected } of golden.canvases) {
    const canvas = rotationToCanvas(size, rollDeg);
    assert.deepEqual(canvas.canvasSize, canvasSize, `${rollDeg} degrees`);
    assertClose(canvas.inverse, inverse, 1e-9);
    assertClose(turnedBox([100, 50, 180, 170], size, rollDeg), expected, 1e-9);
  }
});

test("rounds as Python does", () => {
  for (const [value, decimals, rounded] of golden.rounded) {
    assert.equal(roundHalfEven(value, decimals) + 0, rounded + 0, `${value} to ${decimals}`);
  }
});

test("roll is positive when the image-right eye is lower", () => {
  assert.equal(rollFromLandmarks([[0, 0], [10, 10]]), 45);
  assert.equal(rollFromLandmarks([[0, 0], [10, -10]]), -45);
});

test("intersection over union", () => {
  assert.equal(iou([0, 0, 2, 2], [1, 0, 3, 2]), 1 / 3);
  assert.equal(iou([0, 0, 2, 2], [2, 2, 3, 3]), 0);
});
