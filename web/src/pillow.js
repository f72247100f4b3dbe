// What Pillow does to pixels, number for number: the age network was trained on its crops.
//
// A picture is { width, height, data }, with four bytes a pixel as canvases have them. The fourth
// byte, the opacity, is always 255 here.

const PRECISION_BITS = 22; // of the weights that Pillow's resize rounds to whole numbers
const BICUBIC_SUPPORT = 2; // pixels on each side that a weight reaches

/**
 * The picture that `Image.transform(size, AFFINE, inverse, BICUBIC)` makes.
 *
 * @param picture source.
 * @param size [width, height] of the result.
 * @param inverse [a, b, c, d, e, f]: the point (x, y) of the result is found at
 *     (a x + b y + c, d x + e y + f) of the source. What lies outside the source is black.
 */
export function transformAffine(picture, [width, height], [a, b, c, d, e, f]) {
  const result = newPicture(width, height);
  for (let row = 0, target = 0; row < height; row++) {
    for (let column = 0; column < width; column++, target += 4) {
      const x = a * (column + 0.5) + b * (row + 0.5) + c;
      const y = d * (column + 0.5) + e * (row + 0.5) + f;
      if (x >= 0 && x < picture.width && y >= 0 && y < picture.height) {
        samplePixel(picture, x - 0.5, y - 0.5, result.data, target);
      }
    }
  }
  return result;
}

/** Bicubic value of the three colours at (x, y), counted from the centre of the first pixel. */
function samplePixel({ width, height, data }, x, y, out, target) {
  const left = Math.floor(x);
  const top = Math.floor(y);
  const dx = x - left;
  const dy = y - top;
  const x0 = 4 * clamp(left - 1, 0, width - 1);
  const x1 = 4 * clamp(left, 0, width - 1);
  const x2 = 4 * clamp(left + 1, 0, width - 1);
  const x3 = 4 * clamp(left + 2, 0, width - 1);
  const stride = 4 * width;
  const row0 = stride * clamp(top - 1, 0, height - 1);
  // Where a row lies outside, Pillow takes the row before it: at the border this is the last one.
  const row1 = top >= 0 && top < height ? stride * top : row0;
  const row2 = top + 1 >= 0 && top + 1 < height ? stride * (top + 1) : row1;
  const row3 = top + 2 >= 0 && top + 2 < height ? stride * (top + 2) : row2;
  for (let colour = 0; colour < 3; colour++) {
    const value = cubic(
      cubic(data[row0 + x0 + colour], data[row0 + x1 + colour],
            data[row0 + x2 + colour], data[row0 + x3 + colour], dx),
      cubic(data[row1 + x0 + colour], data[row1 + x1 + colour],
            data[row1 + x2 + colour], data[row1 + x3 + colour], dx),
      cubic(data[row2 + x0 + colour], data[row2 + x1 + colour],
            data[row2 + x2 + colour], data[row2 + x3 + colour], dx),
      cubic(data[row3 + x0 + colour], data[row3 + x1 + colour],
            data[row3 + x2 + colour], data[row3 + x3 + colour], dx),
      dy);
    out[target + colour] = Math.trunc(clamp(value, 0, 255)); // Pillow does not round here
  }
}

/** The cubic curve through v1 (at 0) and v2 (at 1), with v0 and v3 beside them, at `at`. */
function cubic(v0, v1, v2, v3, at) {
  const linear = -v0 + v2;
  const square = 2 * (v0 - v1) + v2 - v3;
  const cube = -v0 + v1 - v2 + v3;
  return v1 + at * (linear + at * (square + at * cube));
}

/**
 * The picture that Pillow 10 to 12 make with `Image.resize(size, BICUBIC)`: all rows first, then
 * all columns. (Pillow 13 takes the columns of tall pictures first.)
 *
 * @param picture source.
 * @param size [width, height] of the result.
 */
export function resize(picture, [width, height]) {
  return resizeColumns(resizeRows(picture, width), height);
}

function resizeRows(picture, width) {
  const result = newPicture(width, picture.height);
  const weights = resizeWeights(picture.width, width);
  for (let row = 0; row < picture.height; row++) {
    const source = 4 * row * picture.width;
    for (let column = 0; column < width; column++) {
      const { first, values } = weights[column];
      weightedSum(picture.data, source + 4 * first, 4, values,
                  result.data, 4 * (row * width + column));
    }
  }
  return result;
}

function resizeColumns(picture, height) {
  const { width } = picture;
  const result = newPicture(width, height);
  const weights = resizeWeights(picture.height, height);
  for (let row = 0; row < height; row++) {
    const { first, values } = weights[row];
    for (let column = 0; column < width; column++) {
      weightedSum(picture.data, 4 * (first * width + column), 4 * width, values,
                  result.data, 4 * (row * width + column));
    }
  }
  return result;
}

function weightedSum(data, start, step, weights, out, target) {
  let red = 1 << (PRECISION_BITS - 1); // one half, so that the shift below rounds
  let green = red;
  let blue = red;
  for (let i = 0, at = start; i < weights.length; i++, at += step) {
    red += data[at] * weights[i];
    green += data[at + 1] * weights[i];
    blue += data[at + 2] * weights[i];
  }
  out[target] = red >> PRECISION_BITS; // a Uint8ClampedArray clips by itself
  out[target + 1] = green >> PRECISION_BITS;
  out[target + 2] = blue >> PRECISION_BITS;
}

/** For each pixel of the result: the first source pixel it is made of, and their weights. */
function resizeWeights(length, newLength) {
  const scale = length / newLength;
  const stretch = Math.max(scale, 1); // when shrinking, the filter grows: no aliasing
  const support = BICUBIC_SUPPORT * stretch;
  const shrink = 1 / stretch;
  return Array.from({ length: newLength }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const stop = Math.min(length, Math.trunc(centre + support + 0.5));
    const raw = [];
    for (let at = first; at < stop; at++) {
      raw.push(bicubicWeight((at - centre + 0.5) * shrink));
    }
    const total = raw.reduce((sum, value) => sum + value, 0);
    return { first, values: Int32Array.from(raw, (value) => wholeWeight(value / total)) };
  });
}

function bicubicWeight(distance) {
  const a = -0.5;
  const x = Math.abs(distance);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

function wholeWeight(weight) {
  return Math.trunc(weight * (1 << PRECISION_BITS) + (weight < 0 ? -0.5 : 0.5));
}

function newPicture(width, height) {
  const data = new Uint8ClampedArray(4 * width * height);
  for (let opacity = 3; opacity < data.length; opacity += 4) data[opacity] = 255;
  return { width, height, data };
}

function clamp(value, low, high) {
  return value < low ? low : value > high ? high : value;
}
