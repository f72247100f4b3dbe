import assert from "node:assert/strict";
import { test } from "node:test";

import { CELL, STRIDE, SummedPhoto, photoPart, pyramid, suppressWithin, windows }
  from "../src/mtcnn.js";
import { pictureOf } from "./pictures.js";

test("the pyramid ends where the photo is smaller than a cell", () => {
  const levels = pyramid([100, 60], 20);
  assert.deepEqual([levels[0].width, levels[0].height], [61, 37]);
  assert.equal(levels[0].faceSize, 20);
  assert.ok(levels.every(({ scale }) => 60 * scale >= CELL));
  assert.equal(pyramid([100, 19], 20).length, 0);
});

test("the windows of a large level judge every cell once", () => {
  const [level] = pyramid([900, 500], 20);
  const cells = new Set();
  let count = 0;
  for (const { top, left, height, width } of windows(level, [900, 500])) {
    for (let y = 0; y + CELL <= height; y += STRIDE) {
      for (let x = 0; x + CELL <= width; x += STRIDE) {
        cells.add(`${left + x} ${top + y}`);
        count++;
      }
    }
  }
  const along = (length) => Math.floor((length - CELL) / STRIDE) + 1;
  assert.equal(count, cells.size);
  assert.equal(count, along(level.width) * along(level.height));
});

test("a part of a photo gives a window the same numbers as the whole", () => {
  const [width, height] = [70, 50];
  const pixels = Array.from({ length: 3 * width * height }, (_, i) => (i * i * 7919) % 256);
  const photo = pictureOf({ width, height, pixels });
  const size = [width, height];
  const window = windows(pyramid(size, 14)[0], size, [20, 12, 48, 44])[0];
  const part = photoPart([window], size);
  const [x1, y1, x2, y2] = part;
  const cut = pictureOf({
    width: x2 - x1,
    height: y2 - y1,
    pixels: pixels.filter((_, i) => {
      const [x, y] = [Math.floor(i / 3) % width, Math.floor(i / 3 / width)];
      return x >= x1 && x < x2 && y >= y1 && y < y2;
    }),
  });
  assert.ok(x2 - x1 < width && y2 - y1 < height);
  assert.deepEqual(new SummedPhoto(cut, size, [x1, y1]).window(window),
                   new SummedPhoto(photo).window(window));
});

test("a crop's numbers are means of colours, in -1..1", () => {
  const photo = pictureOf({ width: 2, height: 2,
                            pixels: [0, 0, 255, 10, 0, 255, 20, 0, 255, 30, 0, 255] });
  const [red, green, blue] = new SummedPhoto(photo).crops([[0, 0, 2, 2]], 1);
  assert.deepEqual([red, green, blue], [(15 - 127.5) / 128, -127.5 / 128, 127.5 / 128]);
});

test("a small box within a large one is the same face", () => {
  const large = { box: [0, 0, 100, 100], score: 0.9 };
  const small = { box: [10, 10, 60, 60], score: 0.8 };
  const apart = { box: [90, 90, 190, 190], score: 0.7 };
  assert.deepEqual(suppressWithin([small, apart, large], 0.7), [large, apart]);
});
