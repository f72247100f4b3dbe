// The built page with many photos: how they come in, wait, go, and are named and counted.

import assert from "node:assert/strict";
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { temporaryFolder } from "../folders.js";
import { addPhotos, dropPaths, launch, openPage, servePage, skip, tableOf, textOf, waitForPhotos }
  from "./browser.js";

const LIMIT = { timeout: 120_000 }; // milliseconds a test
const severalHundred = Array.from({ length: 250 }, (_, i) => `many/${1000 + i}.png`);
const SAMPLES = fileURLToPath(new URL("../../../misc/samples/", import.meta.url));

describe("many photos", { skip }, () => {
  const folder = temporaryFolder();
  let browser;

  before(async () => {
    await copySamples("a.png", "b.png", "c.png", "d.png", "e.png", "f.png");
    browser = await launch("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream");
  });
  after(() => browser?.close());

  /** Copies of one photo in the folder; the paths of all. */
  async function copySamples(...names) {
    await Promise.all(names.map(async (name) => {
      await mkdir(path.dirname(path.join(folder, name)), { recursive: true });
      await copyFile(path.join(SAMPLES, "astronaut.png"), path.join(folder, name));
    }));
  }

  const paths = (...names) => names.map((name) => path.join(folder, name));

  test("the tables of all photos can be saved when all are done", LIMIT, async () => {
    const { page } = await openPage(browser);
    const input = await page.$("#photo-files");
    await input.uploadFile(...paths("a.png", "b.png", "c.png"));
    const disabled = () => page.$$eval("#results-actions button", (buttons) =>
      buttons.map((button) => button.disabled));
    assert.deepEqual(await disabled(), [true, true, true]);
    assert.equal(await textOf(page, "#results-progress"), "0 of 3 photos done");
    assert.equal(await textOf(page, "article:last-child .news"), "Waiting");
    await waitForPhotos(page, 1);
    assert.match(await textOf(page, "#announcements"), /one face\. .* [12] of 3 photos done\.$/);
    await waitForPhotos(page, 3);
    assert.equal(await textOf(page, "#results-progress"), "3 of 3 photos done");
    assert.deepEqual(await disabled(), [false, false, false]);
    await page.close();
  });

  test("a removed photo is not computed, and is not spoken of", LIMIT, async () => {
    const { page } = await openPage(browser);
    const asked = await watchWorker(page);
    await writeFile(path.join(folder, "notes.txt"), "no picture");
    const input = await page.$("#photo-files");
    await input.uploadFile(...paths("a.png", "b.png", "notes.txt", "c.png"));
    await keepAnnouncements(page);
    await page.$$eval("article .remove", (buttons) => {
      for (const button of buttons) if (!/ [ac]\.png$/.test(button.ariaLabel)) button.click();
    });
    assert.equal(await textOf(page, "#results-progress"), "0 of 2 photos done");
    await waitForPhotos(page, 2);
    assert.deepEqual(await asked(), ["photo", "photo"]);
    const spoken = await page.evaluate(() => globalThis.spoken);
    assert.deepEqual(spoken.map((text) => text.slice(0, 5)), ["a.png", "c.png"]);
    await page.close();
  });

  test("the camera's next frame goes before the next photo", LIMIT, async () => {
    const { page } = await openPage(browser);
    const asked = await watchWorker(page);
    const input = await page.$("#photo-files");
    await input.uploadFile(...paths("a.png", "b.png", "c.png", "d.png", "e.png", "f.png"));
    await page.click("#use-camera");
    await waitForPhotos(page, 6);
    const order = await asked();
    const first = order.indexOf("frame");
    assert.ok(first > 0 && first < order.lastIndexOf("photo"), `${order}`);
    const between = order.slice(first).join(" ").match(/photo( photo)+/);
    assert.equal(between, null, `${order}`);
    await page.close();
  });

  test("photos of one name have names of their own", LIMIT, async () => {
    const { page } = await openPage(browser);
    await copySamples("other/a.png");
    await addPhotos(page, ...paths("a.png", "other/a.png"));
    await addPhotos(page, ...paths("a.png"));
    const names = await page.$$eval("article", (cards) => cards.map((card) => card.ariaLabel));
    assert.deepEqual(names, ["a (3).png", "a.png", "a (2).png"]);
    assert.equal((await tableOf(page, "a (2).png"))[0].file, "a (2).png");
    await page.close();
  });

  // Chromium reads the folder by its handle; from a host, where it can, as Firefox and Safari do.
  for (const [where, isServed] of [["a disk", false], ["a host, without handles", true]]) {
    test(`takes the photos of a dropped folder, opened from ${where}`, LIMIT, async () => {
      const server = isServed ? await servePage() : null;
      const { page, errors } = await openPage(browser, server?.url);
      if (isServed) {
        await page.evaluate(() => { delete DataTransferItem.prototype.getAsFileSystemHandle; });
      }
      await copySamples("trip/b.JPG", "trip/a/2.png", "trip/a/10.png", "trip/c.png", "z.png");
      for (const name of ["trip/notes.txt", "empty/notes.txt", ...severalHundred]) {
        await mkdir(path.dirname(path.join(folder, name)), { recursive: true });
        await writeFile(path.join(folder, name), "no picture");
      }
      await dropPaths(page, ...paths("z.png", "trip", "empty", "many"));
      await waitForPhotos(page, 5 + severalHundred.length);
      const names = await page.$$eval("article", (cards) => cards.map((card) => card.ariaLabel));
      assert.deepEqual(names, ["z.png", "trip/a/10.png", "trip/a/2.png", "trip/b.JPG",
                               "trip/c.png", ...severalHundred]);
      assert.equal(await textOf(page, "#intake-problem"), "The folder “empty” holds no photos.");
      assert.deepEqual(errors, []);
      await page.close();
      server?.close();
    });
  }

  test("after a photo is removed the page stays where it is, and so does the focus", LIMIT,
       async () => {
         const { page } = await openPage(browser);
         await addPhotos(page, ...paths("a.png", "b.png", "c.png"));
         const remove = async (name) => {
           const button = await page.$(`[aria-label="Remove ${name}"]`);
           await button.scrollIntoView();
           const before = await page.evaluate(() => scrollY);
           await button.press("Enter");
           return page.evaluate((at) => ({ moved: Math.abs(scrollY - at),
                                           focus: document.activeElement.ariaLabel
                                             ?? document.activeElement.id }), before);
         };
         assert.deepEqual(await remove("b.png"), { moved: 0, focus: "Remove c.png" });
         const last = await remove("c.png");
         assert.equal(last.focus, "Remove a.png");
         assert.equal((await remove("a.png")).focus, "choose-photos");
         await page.close();
       });

  test("says to load the page again when the worker has failed", LIMIT, async () => {
    const { page, errors } = await openPage(browser);
    const input = await page.$("#photo-files");
    await addPhotos(page, ...paths("a.png"));
    await input.uploadFile(...paths("b.png", "c.png"));
    await page.workers()[0].evaluate(() => { setTimeout(() => { throw new Error("lost"); }); });
    await waitForPhotos(page, 3);
    await addPhotos(page, ...paths("d.png"));
    for (const name of ["c.png", "d.png"]) {
      assert.match(await textOf(page, `article[aria-label="${name}"]`),
                   /The networks have stopped \(.*lost\)\..* load the page again/);
    }
    assert.match(await textOf(page, 'article[aria-label="a.png"]'), /80% interval/);
    assert.deepEqual(errors, []);
    await page.click("#use-camera");
    await page.waitForSelector("#camera.failed");
    assert.match(await textOf(page, "#camera-news"), /load the page again/);
    await page.close();
  });

  test("after the camera is closed its first button has the focus", LIMIT, async () => {
    const { page } = await openPage(browser);
    await page.focus("#use-camera");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#camera.live");
    const height = () => page.$eval(".intake", (found) => getComputedStyle(found).minHeight);
    assert.equal(await height(), "0px"); // it makes room for the picture
    await page.focus("#camera-stop");
    await page.keyboard.press("Enter");
    assert.equal(await page.$eval("#camera", (section) => section.hidden), true);
    assert.notEqual(await height(), "0px");
    assert.equal(await page.evaluate(() => document.activeElement.id), "use-camera");
    await page.close();
  });
});

/** Function that gives all requests to the page's worker from now on, in order. */
async function watchWorker(page) {
  const [worker] = page.workers();
  await worker.evaluate(() => {
    self.asked = [];
    self.addEventListener("message", ({ data }) => self.asked.push(data.request));
  });
  return () => worker.evaluate(() => self.asked);
}

/** Keeps what the page says to screen readers from now on in globalThis.spoken. */
function keepAnnouncements(page) {
  return page.evaluate(() => {
    globalThis.spoken = [];
    const place = document.getElementById("announcements");
    new MutationObserver(() => globalThis.spoken.push(place.textContent))
      .observe(place, { childList: true });
  });
}
