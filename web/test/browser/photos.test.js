// src/photos.js in Chromium: what it reads of a picture is the picture.

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { after, before, describe, test } from "node:test";

import { build } from "esbuild";

import { launch, skip } from "./browser.js";

const PHOTOS = fileURLToPath(new URL("../../src/photos.js", import.meta.url));

describe("pictures of any size", { skip }, () => {
  let browser;
  let page;

  before(async () => {
    browser = await launch();
    page = await browser.newPage();
    const { outputFiles: [{ text }] } = await build({
      entryPoints: [PHOTOS], bundle: true, write: false, format: "iife", globalName: "photos" });
    await page.addScriptTag({ content: text });
  });
  after(() => browser?.close());

  // Two are within a canvas, two are not: Chromium's has at most 65,535 pixels a side.
  for (const [width, height] of [[5, 3], [4100, 4099], [70_000, 3], [3, 70_000]]) {
    test(`every pixel of ${width} x ${height}, transparent ones as black`, async () => {
      const read = await page.evaluate(async (size) => {
        const drawn = new ImageData(...size);
        drawn.data.forEach((_, i) => {
          const isSeen = Math.floor(i / 4) % 3 !== 0;
          drawn.data[i] = isSeen ? (i % 4 === 3 ? 255 : (i * 7919) % 251) : 0;
        });
        const picture = photos.pixelsOf(await createImageBitmap(drawn));
        const differing = drawn.data.filter(
          (value, i) => picture.data[i] !== (i % 4 === 3 ? 255 : value));
        return { size: [picture.width, picture.height], differing: differing.length };
      }, [width, height]);
      assert.deepEqual(read, { size: [width, height], differing: 0 });
    });
  }
});
