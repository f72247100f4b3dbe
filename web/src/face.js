// Face geometry, as preprocess/face.py has it: how a photo is rotated upright and cropped.
//
// A box is [x1, y1, x2, y2] in pixels, x2 and y2 exclusive. An aligned box lies in the rotated,
// expanded canvas that Pillow's `rotate(rollDeg, expand=True)` makes of the photo.

import { roundHalfEven } from "./numbers.js";
import { resize, transformAffine } from "./pillow.js";

export const ROLL_DECIMALS = 4; // of an aligned list
export const BOX_DECIMALS = 2;

/** Degrees of the line between the eyes, positive when the image-right eye is lower. */
export function rollFromLandmarks([[leftX, leftY], [rightX, rightY]]) {
  return (Math.atan2(rightY - leftY, rightX - leftX) * 180) / Math.PI;
}

/** Angle and box as an aligned list holds them, rounded: what training reads. */
export function asListed(rollDeg, box) {
  return [roundHalfEven(rollDeg, ROLL_DECIMALS),
          box.map((value) => roundHalfEven(value, BOX_DECIMALS))];
}

/** Intersection over union of two boxes, 0..1. */
export function iou(box, other) {
  const width = Math.min(box[2], other[2]) - Math.max(box[0], other[0]);
  const height = Math.min(box[3], other[3]) - Math.max(box[1], other[1]);
  const shared = Math.max(width, 0) * Math.max(height, 0);
  return shared / (area(box) + area(other) - shared);
}

export function area([x1, y1, x2, y2]) {
  return (x2 - x1) * (y2 - y1);
}

/**
 * The map that Pillow's `rotate(rollDeg, expand=True)` applies.
 *
 * @param size [width, height] of the photo.
 * @param rollDeg degrees, counter-clockwise.
 * @returns { canvasSize: [width, height], inverse: [a, b, c, d, e, f] }, the inverse from the
 *     canvas to the photo (see pillow.js).
 */
export function rotationToCanvas([width, height], rollDeg) {
  const radians = (-(((rollDeg % 360) + 360) % 360) * Math.PI) / 180;
  // Pillow rounds to 15 digits so that right angles are exact.
  const cos = roundHalfEven(Math.cos(radians), 15);
  const sin = roundHalfEven(Math.sin(radians), 15);
  const centre = [width / 2, height / 2];
  // As Pillow does, the extent is measured with the inverse map: the two are mirror images.
  const corners = [[0, 0], [width, 0], [width, height], [0, height]].map(([x, y]) => [
    (x - centre[0]) * cos + (y - centre[1]) * sin + centre[0],
    -(x - centre[0]) * sin + (y - centre[1]) * cos + centre[1],
  ]);
  let canvasSize = [0, 1].map((axis) => {
    const values = corners.map((corner) => corner[axis]);
    return Math.ceil(Math.max(...values)) - Math.floor(Math.min(...values));
  });
  if (rollDeg % 180 === 0) canvasSize = [width, height];
  else if (rollDeg % 90 === 0) canvasSize = [height, width];
  const [halfWidth, halfHeight] = canvasSize.map((side) => side / 2);
  return {
    canvasSize,
    inverse: [cos, sin, centre[0] - (cos * halfWidth + sin * halfHeight),
              -sin, cos, centre[1] - (-sin * halfWidth + cos * halfHeight)],
  };
}

/**
 * A box of the same sides around the same point of the face, in the rotated canvas.
 *
 * @param box in the photo.
 * @param size [width, height] of the photo.
 */
export function turnedBox([x1, y1, x2, y2], size, rollDeg) {
  const [a, b, c, d, e, f] = rotationToCanvas(size, rollDeg).inverse;
  const fromX = (x1 + x2) / 2 - c;
  const fromY = (y1 + y2) / 2 - f;
  // The inverse of a rotation is its transpose.
  const x = fromX * a + fromY * d;
  const y = fromX * b + fromY * e;
  return [x - (x2 - x1) / 2, y - (y2 - y1) / 2, x + (x2 - x1) / 2, y + (y2 - y1) / 2];
}

/** Adds marginRatio of the box's width and height on each of its sides. */
export function expandBox([x1, y1, x2, y2], marginRatio) {
  const marginX = (x2 - x1) * marginRatio;
  const marginY = (y2 - y1) * marginRatio;
  return [x1 - marginX, y1 - marginY, x2 + marginX, y2 + marginY];
}

/**
 * Cuts a face out of the rotated photo without rotating the whole of it.
 *
 * Right angles need no path of their own: each point then falls on the centre of a pixel, and the
 * pixels are copied unchanged.
 *
 * @param photo picture (see pillow.js), upright.
 * @param alignedBox in the rotated canvas.
 * @param marginRatio share of the box's width and height added on each side.
 * @returns picture; what overhangs the photo is black.
 */
export function cropFace(photo, alignedBox, rollDeg, marginRatio) {
  const [x1, y1, x2, y2] = expandBox(alignedBox, marginRatio).map((value) => roundHalfEven(value));
  if (x2 <= x1 || y2 <= y1) throw new Error(`empty face box ${x1} ${y1} ${x2} ${y2}`);
  const [a, b, c, d, e, f] = rotationToCanvas([photo.width, photo.height], rollDeg).inverse;
  return transformAffine(photo, [x2 - x1, y2 - y1],
                         [a, b, c + a * x1 + b * y1, d, e, f + d * x1 + e * y1]);
}

/** Square picture of a crop, stretched as training does. */
export function resizeFace(crop, side) {
  return resize(crop, [side, side]);
}
