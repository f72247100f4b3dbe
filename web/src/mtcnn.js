// MTCNN face detection: everything but the three networks, as preprocess/mtcnn.py has it.
//
// Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
// Networks", IEEE SPL 2016, in the variant of facenet_pytorch: the same image pyramid, thresholds,
// rounding of boxes, area resampling and suppression, so that the faces found are the same.
// Math.fround stands where Python rounds to float32 and a box could otherwise move by a pixel.

import { area, iou } from "./face.js";

export const CELL = 12; // pixels, side of the square that the proposal network judges
export const STRIDE = 2; // pixels between two of its squares
export const PYRAMID_FACTOR = 0.709; // from one level of the pyramid to the next
export const MIN_PROPOSAL_SCORE = 0.6; // probabilities
export const MIN_REFINED_SCORE = 0.7;
export const MIN_FACE_SCORE = 0.7;
export const MAX_LEVEL_IOU = 0.5; // of boxes of different faces
export const MAX_PHOTO_IOU = 0.7;
export const MAX_FACE_OVERLAP = 0.7;
export const REFINE_SIZE = 24; // pixels, input sides of the second and the third network
export const OUTPUT_SIZE = 48;
export const MAX_TILE = 128; // pixels, side of the windows scanned at once: bounds memory
const BATCH = 64; // squares that the second and the third network judge at once

/**
 * Levels of the image pyramid, from the finest to the coarsest.
 *
 * @param size [width, height] of the photo.
 * @param minFaceSize pixels.
 * @returns list of { scale, width, height, faceSize }: the photo resampled to width x height;
 *     one cell sees a square of faceSize pixels of the photo.
 */
export function pyramid([width, height], minFaceSize) {
  const levels = [];
  let scale = CELL / minFaceSize;
  let shorter = Math.min(width, height) * scale;
  while (shorter >= CELL) {
    levels.push({
      scale,
      width: Math.trunc(width * scale + 1),
      height: Math.trunc(height * scale + 1),
      faceSize: CELL / scale,
    });
    scale *= PYRAMID_FACTOR;
    shorter *= PYRAMID_FACTOR;
  }
  return levels;
}

/** Summed-area table of a photo, or of a part of it: mean colours of rectangles. */
export class SummedPhoto {
  /**
   * @param part picture (see pillow.js).
   * @param size [width, height] of the whole photo.
   * @param origin [x, y] of the part in the photo.
   */
  constructor(part, size = [part.width, part.height], origin = [0, 0]) {
    this.sums = sumsOf(part); // (height + 1, width + 1, 3)
    this.rowLength = part.width + 1;
    this.size = size;
    this.origin = origin;
    this.part = [...origin, origin[0] + part.width, origin[1] + part.height];
  }

  /** Network input, a part of a level: 3 x height x width numbers. */
  window({ level, top, left, height, width }) {
    const input = new Float32Array(3 * height * width);
    this.#fill(input, 0,
               bins(this.size[0], level.width, left, width, -this.origin[0]),
               bins(this.size[1], level.height, top, height, -this.origin[1]));
    return input;
  }

  /** Network inputs, whole-pixel boxes resampled: N x 3 x side x side numbers. */
  crops(boxes, side) {
    const length = 3 * side * side;
    const inputs = new Float32Array(boxes.length * length);
    boxes.forEach(([x1, y1, x2, y2], index) => {
      this.#fill(inputs, index * length,
                 bins(x2 - x1, side, 0, side, x1 - this.origin[0]),
                 bins(y2 - y1, side, 0, side, y1 - this.origin[1]));
    });
    return inputs;
  }

  /** Mean colours of rectangles, where columns and rows of bins() meet. */
  #fill(input, start, columns, rows) {
    const { sums, rowLength } = this;
    const plane = rows.count * columns.count;
    let at = start;
    for (let row = 0; row < rows.count; row++) {
      const upper = 3 * rows.first[row] * rowLength;
      const lower = 3 * rows.stop[row] * rowLength;
      const height = rows.stop[row] - rows.first[row];
      for (let column = 0; column < columns.count; column++, at++) {
        let left = 3 * columns.first[column];
        let right = 3 * columns.stop[column];
        const pixels = height * (columns.stop[column] - columns.first[column]);
        for (let target = at; target < at + 3 * plane; target += plane, left++, right++) {
          const sum = (sums[lower + right] - sums[lower + left]
                       - sums[upper + right] + sums[upper + left]) | 0;
          const mean = Math.fround(Math.fround(sum) / pixels);
          input[target] = Math.fround(mean - 127.5) * 0.0078125;
        }
      }
    }
  }
}

function sumsOf({ width, height, data }) {
  const rowLength = 3 * (width + 1);
  // 32 bits overflow beyond 8 megapixels, but differences of sums stay right.
  const sums = new Int32Array(rowLength * (height + 1));
  let source = 0;
  for (let row = 1; row <= height; row++) {
    let red = 0;
    let green = 0;
    let blue = 0;
    let target = row * rowLength + 3;
    for (let column = 0; column < width; column++, source += 4, target += 3) {
      red += data[source];
      green += data[source + 1];
      blue += data[source + 2];
      sums[target] = sums[target - rowLength] + red;
      sums[target + 1] = sums[target + 1 - rowLength] + green;
      sums[target + 2] = sums[target + 2 - rowLength] + blue;
    }
  }
  return sums;
}

/** First and one past the last of the pixels that make each resampled one (adaptive pooling). */
function bins(length, outputLength, start, count, shift) {
  const first = new Int32Array(count);
  const stop = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    first[i] = Math.floor(((start + i) * length) / outputLength) + shift;
    stop[i] = Math.ceil(((start + i + 1) * length) / outputLength) + shift;
  }
  return { first, stop, count };
}

/**
 * Windows whose cells cover a level, or the part of it within a region, once.
 *
 * @param level of a photo of size [width, height].
 * @param region box in pixels of the photo, or none for the whole.
 * @returns list of { level, top, left, height, width }; empty where the region is smaller than a
 *     cell.
 */
export function windows(level, size, region = null) {
  let columns = [0, level.width];
  let rows = [0, level.height];
  if (region) {
    columns = span(region[0], region[2], level.width, level.width / size[0]);
    rows = span(region[1], region[3], level.height, level.height / size[1]);
  }
  return tiles(...rows).flatMap(([top, height]) =>
    tiles(...columns).map(([left, width]) => ({ level, top, left, height, width })));
}

/** Even start and stop, in pixels of a level, of a range of the photo. */
function span(low, high, length, scale) {
  // The cells keep the places that they have when the whole level is scanned.
  const start = Math.floor(Math.max(Math.trunc(low * scale), 0) / STRIDE) * STRIDE;
  const stop = Math.ceil(Math.ceil(high * scale) / STRIDE) * STRIDE;
  return [start, Math.min(stop, length)];
}

function tiles(start, stop) {
  const overlap = CELL - STRIDE;
  const found = [];
  for (let at = start; stop - at > overlap; at += MAX_TILE - overlap) {
    found.push([at, Math.min(MAX_TILE, stop - at)]);
    if (stop - at <= MAX_TILE) break;
  }
  return found;
}

/** Box: the pixels of a photo of size [width, height] that windows are made of. */
export function photoPart(windowList, size) {
  const part = [size[0], size[1], 0, 0];
  for (const { level, top, left, height, width } of windowList) {
    part[0] = Math.min(part[0], Math.floor((left * size[0]) / level.width));
    part[1] = Math.min(part[1], Math.floor((top * size[1]) / level.height));
    part[2] = Math.max(part[2], Math.ceil(((left + width) * size[0]) / level.width));
    part[3] = Math.max(part[3], Math.ceil(((top + height) * size[1]) / level.height));
  }
  return part;
}

/**
 * First stage: squares that may hold a face.
 *
 * @param photo SummedPhoto.
 * @param windowList of windows().
 * @param networks see networks.js.
 * @param onWindow called after each window.
 * @returns list of { box, score, offsets }, finest level first.
 */
export async function propose(photo, windowList, networks, onWindow = () => {}) {
  const byLevel = new Map();
  for (const window of windowList) {
    const input = photo.window(window);
    const outputs = await networks.propose(input, [1, 3, window.height, window.width]);
    if (!byLevel.has(window.level)) byLevel.set(window.level, []);
    byLevel.get(window.level).push(...squares(window, ...outputs));
    onWindow();
  }
  return [...byLevel.values()].flatMap((found) => suppress(found, MAX_LEVEL_IOU));
}

function squares({ level, top, left }, offsets, probs) {
  const [, , rows, columns] = probs.dims;
  const cells = rows * columns;
  const scale = Math.fround(level.scale);
  const toPhoto = (value) => Math.floor(Math.fround(value / scale));
  const found = [];
  for (let cell = 0; cell < cells; cell++) {
    const score = probs.data[cells + cell];
    if (score < MIN_PROPOSAL_SCORE) continue;
    const x = left + STRIDE * (cell % columns) + 1;
    const y = top + STRIDE * Math.floor(cell / columns) + 1;
    found.push({
      box: [toPhoto(x), toPhoto(y), toPhoto(x + CELL - 1), toPhoto(y + CELL - 1)],
      score,
      offsets: [0, 1, 2, 3].map((side) => offsets.data[side * cells + cell]),
    });
  }
  return found;
}

/**
 * Second and third stage: from squares to faces.
 *
 * @param photo SummedPhoto.
 * @param proposals of propose().
 * @param networks see networks.js.
 * @returns list of { box, score, landmarks }, the largest face first; landmarks are five [x, y]:
 *     image-left eye, image-right eye, nose, image-left mouth, image-right mouth.
 */
export async function findFaces(photo, proposals, networks) {
  const squared = suppress(proposals, MAX_PHOTO_IOU).map(({ box, offsets }) => {
    const sides = [box[2] - box[0], box[3] - box[1]];
    return square(box.map((value, i) => value + offsets[i] * sides[i % 2]));
  });
  const refined = suppress(await refine(photo, squared, networks), MAX_PHOTO_IOU)
    .map(({ box, offsets }) => square(shifted(box, offsets)));
  const faces = suppressWithin(await locate(photo, refined, networks), MAX_FACE_OVERLAP);
  return faces.sort((face, other) => area(other.box) - area(face.box));
}

async function refine(photo, boxes, networks) {
  const found = [];
  for (const batch of batches(photo, boxes)) {
    const [offsets, probs] = await networks.refine(
      photo.crops(batch.pixels, REFINE_SIZE), [batch.boxes.length, 3, REFINE_SIZE, REFINE_SIZE]);
    batch.boxes.forEach((box, i) => {
      const score = probs.data[2 * i + 1];
      if (score > MIN_REFINED_SCORE) {
        found.push({ box, score, offsets: offsets.data.slice(4 * i, 4 * i + 4) });
      }
    });
  }
  return found;
}

async function locate(photo, boxes, networks) {
  const found = [];
  for (const batch of batches(photo, boxes)) {
    const [offsets, points, probs] = await networks.output(
      photo.crops(batch.pixels, OUTPUT_SIZE), [batch.boxes.length, 3, OUTPUT_SIZE, OUTPUT_SIZE]);
    batch.boxes.forEach((box, i) => {
      const score = probs.data[2 * i + 1];
      if (score > MIN_FACE_SCORE) {
        found.push({
          box: shifted(box, offsets.data.slice(4 * i, 4 * i + 4)),
          score,
          landmarks: landmarksIn(box, points.data.slice(10 * i, 10 * i + 10)),
        });
      }
    });
  }
  return found;
}

/** The network gives five x, then five y, as shares of the box. */
function landmarksIn([x1, y1, x2, y2], points) {
  return [0, 1, 2, 3, 4].map((i) => [points[i] * (x2 - x1 + 1) + x1 - 1,
                                     points[i + 5] * (y2 - y1 + 1) + y1 - 1]);
}

/** The boxes that hold pixels of the photo, and these whole pixels, some boxes at a time. */
function* batches(photo, boxes) {
  const [left, top, right, bottom] = photo.part;
  const filled = boxes.map((box) => {
    const [x1, y1, x2, y2] = box.map(Math.trunc);
    return { box, pixels: [Math.max(x1 - 1, left), Math.max(y1 - 1, top),
                           Math.min(x2, right), Math.min(y2, bottom)] };
  }).filter(({ pixels: [x1, y1, x2, y2] }) => x2 > x1 && y2 > y1);
  for (let start = 0; start < filled.length; start += BATCH) {
    const batch = filled.slice(start, start + BATCH);
    yield { boxes: batch.map(({ box }) => box), pixels: batch.map(({ pixels }) => pixels) };
  }
}

function shifted(box, offsets) {
  const sides = [box[2] - box[0] + 1, box[3] - box[1] + 1];
  return box.map((value, i) => value + offsets[i] * sides[i % 2]);
}

/** The square with the box's centre and its longer side. */
function square([x1, y1, x2, y2]) {
  const side = Math.max(x2 - x1, y2 - y1);
  const left = x1 + (x2 - x1) * 0.5 - side * 0.5;
  const top = y1 + (y2 - y1) * 0.5 - side * 0.5;
  return [left, top, left + side, top + side];
}

/** Non-maximum suppression: of items whose boxes overlap by more than this IoU, the likeliest. */
function suppress(items, maxIou) {
  return suppressBy(items, (item, other) => iou(item.box, other.box) > maxIou);
}

/** Suppression by the share of the smaller of two boxes, in whole pixels (the paper's Min). */
export function suppressWithin(items, maxOverlap) {
  const pixels = ([x1, y1, x2, y2]) => (x2 - x1 + 1) * (y2 - y1 + 1);
  return suppressBy(items, ({ box }, { box: other }) => {
    const width = Math.min(box[2], other[2]) - Math.max(box[0], other[0]) + 1;
    const height = Math.min(box[3], other[3]) - Math.max(box[1], other[1]) + 1;
    const shared = Math.max(width, 0) * Math.max(height, 0);
    return shared / Math.min(pixels(box), pixels(other)) > maxOverlap;
  });
}

function suppressBy(items, isSameFace) {
  const kept = [];
  for (const item of [...items].sort((a, b) => b.score - a.score)) {
    if (!kept.some((better) => isSameFace(better, item))) kept.push(item);
  }
  return kept;
}
