// Pictures in the tests: lists of RGB numbers to and from what canvases have.

/** Picture (see src/pillow.js) of { width, height, pixels }, three numbers a pixel. */
export function pictureOf({ width, height, pixels }) {
  const data = new Uint8ClampedArray(4 * width * height).fill(255);
  pixels.forEach((value, i) => {
    data[4 * Math.floor(i / 3) + (i % 3)] = value;
  });
  return { width, height, data };
}

/** The RGB numbers of a picture. */
export function pixelsOf({ data }) {
  return [...data].filter((_, i) => i % 4 < 3);
}
