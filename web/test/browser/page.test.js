// The built page in Chromium, opened from the disk: its ages against AgeEstimator's, and what it
// does with everything that is no photo with a face.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile, readdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";

import { NETWORK_FILES } from "../../networkFiles.js";
import { withChecksum } from "../../onnxMetadata.js";
import { iou } from "../../src/face.js";
import { PHOTO_FACE_RATIO } from "../../src/predictor.js";
import { FIELDS } from "../../src/results.js";
import { temporaryFolder } from "../folders.js";
import { entry } from "../onnxFields.js";
import { PAGE_FILE, PAGE_URL, addPhotos, expectedResults, launch, openPage, servePage, skip,
         tableOf, textOf, waitForPhotos } from "./browser.js";

const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
const MIN_IOU = 0.999;
const MAX_AGE_ERROR = 0.1; // years
const LIMIT = { timeout: 120_000 }; // milliseconds a test

describe("the page", { skip }, () => {
  let expected;
  let browser;
  const file = (name) => path.join(expected.folder, name);

  before(async () => {
    expected = await expectedResults(PHOTO_FACE_RATIO);
    browser = await launch("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
                           `--use-file-for-fake-video-capture=${file("camera.mjpeg")}`);
  });
  after(() => browser?.close());

  test("finds the faces that AgeEstimator finds, and their ages", LIMIT, async () => {
    const { page, errors } = await openPage(browser);
    const names = Object.keys(expected.faces);
    await addPhotos(page, ...names.map(file));
    for (const name of names) {
      compareFaces(name, await tableOf(page, name), expected.faces[name]);
    }
    assert.deepEqual(errors, []);
    await page.close();
  });

  test("makes no connection, and could make none", LIMIT, async () => {
    const { page, requests } = await openPage(browser);
    await addPhotos(page, file("two_faces.jpg"));
    const foreign = requests.filter((url) => !/^(blob|data):/.test(url));
    assert.deepEqual(foreign, [PAGE_URL]);
    const blocked = await page.evaluate(async () => {
      const violations = [];
      document.addEventListener("securitypolicyviolation", ({ effectiveDirective }) =>
        violations.push(effectiveDirective));
      const results = await Promise.allSettled([fetch("https://example.com/"),
                                                fetch("http://127.0.0.1:9/")]);
      const image = new Image();
      await new Promise((resolve) => {
        image.onerror = resolve;
        image.src = "https://example.com/a.png";
      });
      return { violations, failed: results.map(({ status }) => status) };
    });
    assert.deepEqual(blocked.failed, ["rejected", "rejected"]);
    assert.deepEqual(blocked.violations.sort(), ["connect-src", "connect-src", "img-src"]);
    await page.close();
  });

  test("tells what is no picture and what has no face", LIMIT, async () => {
    await writeFile(file("notes.txt"), "no picture");
    const photo = await readFile(file("scene_exif.jpg"));
    await writeFile(file("broken.jpg"), photo.subarray(0, 300));
    await writeFile(file("empty.png"), "");
    const { page, errors } = await openPage(browser);
    await addPhotos(page, file("notes.txt"), file("broken.jpg"), file("empty.png"),
                    file("scene_empty.png"));
    for (const name of ["notes.txt", "broken.jpg", "empty.png"]) {
      assert.match(await textOf(page, `article[aria-label="${name}"]`),
                   /cannot be read as a picture/);
    }
    assert.match(await textOf(page, 'article[aria-label="scene_empty.png"]'), /No face was found/);
    const rows = await saved(page, "#results-actions button:nth-child(2)", "results.csv");
    assert.match(rows, /notes\.txt,,.*,unreadable: /);
    assert.match(rows, /scene_empty\.png,,.*,no face\n/);
    assert.deepEqual(errors, []);
    await page.close();
  });

  test("takes a dropped and a pasted photo, and the sample", LIMIT, async () => {
    const { page } = await openPage(browser);
    const base64 = await readFile(file("astronaut.png"), "base64");
    for (const kind of ["drop", "paste"]) {
      await page.evaluate((type, content) => {
        const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], `${type}.png`, { type: "image/png" }));
        document.body.dispatchEvent(type === "drop"
          ? new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer })
          : new ClipboardEvent("paste", { bubbles: true, clipboardData: transfer }));
      }, kind, base64);
    }
    await page.click("#try-sample");
    await waitForPhotos(page, 3);
    assert.equal((await tableOf(page, "drop.png")).length, 1);
    assert.equal((await tableOf(page, "paste.png")).length, 1);
    compareFaces("the sample", await tableOf(page, "two_faces.jpg"),
                 expected.faces["two_faces.jpg"]);
    await page.close();
  });

  test("saves and copies a photo's table, and saves the marked picture", LIMIT, async () => {
    const { page } = await openPage(browser);
    await browser.defaultBrowserContext().overridePermissions(PAGE_URL, [
      "clipboard-read", "clipboard-write", "clipboard-sanitized-write"]);
    await addPhotos(page, file("two_faces.jpg"));
    const csv = await saved(page, "article .actions button:nth-child(2)", "two_faces.csv");
    const lines = csv.trimEnd().split("\n");
    assert.equal(lines[0], FIELDS.join(","));
    assert.equal(lines.length, 3);
    const json = await saved(page, "article .actions button:nth-child(3)", "two_faces.jsonl");
    const [first] = json.trimEnd().split("\n").map(JSON.parse);
    assert.deepEqual(Object.keys(first), [...FIELDS, "probs"]);
    expected.faces["two_faces.jpg"][0].probs.forEach((prob, i) => {
      assert.ok(Math.abs(first.probs[i] - prob) < 0.01);
    });
    await page.bringToFront();
    await page.click("article .actions button:nth-child(1)");
    await page.waitForFunction(() => document.querySelector("article .actions").innerText
      .includes("Copied"));
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    assert.equal(copied.split("\n")[0], FIELDS.join("\t"));
    const picture = await saved(page, "article .actions button:nth-child(4)",
                                "two_faces_ages.jpg", "latin1");
    assert.ok(picture.length > 50_000);
    await page.close();
  });

  test("says that a marked picture is too large to save", LIMIT, async () => {
    const { page, errors } = await openPage(browser);
    await addPhotos(page, file("too_wide.png"));
    assert.equal((await tableOf(page, "too_wide.png")).length, 1);
    await page.$eval("article .actions button:nth-child(4)", (found) => found.click());
    await page.waitForSelector("article .problem:not(:empty)");
    assert.equal(await textOf(page, "article .problem"), "The browser cannot save this picture of "
                 + "70000 × 240 pixels. It may be too large.");
    assert.deepEqual(errors, []);
    await page.close();
  });

  test("the slider moves the probability of every face", LIMIT, async () => {
    const { page } = await openPage(browser);
    await addPhotos(page, file("two_faces.jpg"));
    const probabilities = () =>
      page.$$eval(".at-least", (found) => found.map(({ innerText }) => innerText));
    const atFirst = await probabilities();
    assert.equal(atFirst.length, 2);
    for (const text of atFirst) assert.match(text, /^At least 18 years: (over )?99\.\d%$/);
    await page.focus("#threshold");
    await page.keyboard.press("End");
    await page.keyboard.press("ArrowLeft");
    const [older, younger] = await probabilities();
    assert.match(older, /^At least 99 years: \d/);
    assert.equal(younger, "At least 99 years: under 0.1%");
    assert.match(await textOf(page, "#threshold-warning"), /must not be used as an age check/);
    await page.close();
  });

  test("every control has a name, and the keyboard reaches it", LIMIT, async () => {
    const { page } = await openPage(browser);
    await addPhotos(page, file("astronaut.png"));
    const everything = ({ children = [], ...node }) => [node, ...children.flatMap(everything)];
    const controls = everything(await page.accessibility.snapshot()).filter(({ role }) =>
      ["button", "checkbox", "slider", "combobox", "image"].includes(role));
    assert.ok(controls.length >= 12, `only ${controls.length} controls`);
    assert.deepEqual(controls.filter(({ name }) => !name), []);
    assert.match(controls.find(({ role }) => role === "image").name,
                 /^astronaut\.png: one face\. \d+ years, 80% interval/);
    const reached = new Set();
    await page.evaluate(() => document.activeElement?.blur());
    for (let i = 0; i < 25; i++) {
      await page.keyboard.press("Tab");
      reached.add(await page.evaluate(() => document.activeElement.id
        || document.activeElement.textContent));
    }
    for (const name of ["choose-photos", "use-camera", "try-sample", "small-faces", "threshold",
                        "Save CSV", "×", "Table", "About, limits and licences"]) {
      assert.ok(reached.has(name), `${name} is not reached: ${[...reached]}`);
    }
    assert.match(await textOf(page, "#announcements"), /astronaut\.png: one face/);
    await page.close();
  });

  test("stays responsive while a large photo is in work", LIMIT, async () => {
    const { page } = await openPage(browser);
    await page.evaluate(() => {
      globalThis.longestGap = 0;
      let last = performance.now();
      setInterval(() => {
        globalThis.longestGap = Math.max(globalThis.longestGap, performance.now() - last);
        last = performance.now();
      }, 10);
    });
    await addPhotos(page, file("scene_large.jpg"));
    const seconds = Number((await textOf(page, "article .facts")).match(/([\d.]+) s/)[1]);
    const gap = await page.evaluate(() => globalThis.longestGap / 1000);
    assert.ok(gap < 0.5 * seconds, `the page stood still for ${gap} of ${seconds} s`);
    await page.close();
  });

  test("shows ages in the camera's picture, and keeps a frame of it", LIMIT, async () => {
    const { page, errors } = await openPage(browser);
    await page.click("#use-camera");
    await page.waitForFunction(() => /#1: \d+ years.*frames\/s/.test(
      document.getElementById("camera-news").textContent), { timeout: 60_000 });
    await page.waitForFunction(() => !/\(0\.0 frames/.test(
      document.getElementById("camera-news").textContent), { timeout: 60_000 });
    const news = await textOf(page, "#camera-news");
    const age = Number(news.match(/#1: (\d+) years/)[1]);
    assert.ok(Math.abs(age - expected.faces["grace_hopper.jpg"][0].age) < 5, news);
    await page.click("#camera-keep");
    await waitForPhotos(page, 1);
    assert.equal((await page.$$("article li.face")).length, 1);
    await page.$eval("#camera-video", (video) => { video.srcObject = new MediaStream(); });
    await page.click("#camera-keep"); // the picture has no pixels now
    await page.waitForSelector("#intake-problem:not(:empty)");
    assert.match(await textOf(page, "#intake-problem"), /cannot save this picture of 0 × 0 pixels/);
    assert.equal((await page.$$("article")).length, 1);
    await page.click("#camera-stop");
    assert.equal(await page.$eval("#camera-video", (video) => video.srcObject), null);
    assert.deepEqual(errors, []);
    await page.close();
  });

  test("works from a static host too", LIMIT, async () => {
    const server = await servePage();
    const { page } = await openPage(browser, server.url);
    await addPhotos(page, file("astronaut.png"));
    assert.equal((await tableOf(page, "astronaut.png")).length, 1);
    assert.deepEqual(server.paths, ["/ages/"]);
    await page.close();
    server.close();
  });

  test("of another network it quotes no measured errors", LIMIT, async () => {
    const folder = temporaryFolder();
    const shipped = await readFile(path.join(ROOT, NETWORK_FILES.age));
    const changed = Buffer.concat([shipped, entry("temperature", "1.5")]); // the last one counts
    const built = path.join(folder, "index.html");
    const words = [path.join(ROOT, "web", "build.js"), "--networks", folder, "--out", built];
    await writeFile(path.join(folder, "model.onnx"), changed);
    await assert.rejects(promisify(execFile)(process.execPath, words), /model.onnx' is damaged: /);
    const other = withChecksum(Buffer.concat([shipped, entry("decode", "mode")]));
    await writeFile(path.join(folder, "model.onnx"), other);
    await assert.rejects(promisify(execFile)(process.execPath, words), /metadata 'decode' 'mode'/);
    await writeFile(path.join(folder, "model.onnx"), withChecksum(changed));
    await promisify(execFile)(process.execPath, words);
    const { page } = await openPage(browser, pathToFileURL(built).href);
    await addPhotos(page, file("astronaut.png"));
    assert.equal((await tableOf(page, "astronaut.png")).length, 1);
    assert.match(await textOf(page, "#threshold-warning"), /was not measured here\.$/);
    const text = await page.evaluate(() => document.body.textContent);
    assert.match(text, /as an age check without a margin; how often this model is wrong was not/);
    assert.doesNotMatch(text, /Of 100 people|% of the adults/);
    assert.match(text, /Temperature1\.5/);
    await page.close();
  });

  test("says so when only a part of the file has arrived", LIMIT, async () => {
    const page = await readFile(PAGE_FILE);
    const cut = file("cut.html");
    await writeFile(cut, page.subarray(0, page.length / 2));
    const opened = await openPage(browser, `file://${cut}`);
    assert.match(await textOf(opened.page, "#loading-news"), /only a part of the file has arrived/);
    await opened.page.close();
  });
});

describe("the page without a camera", { skip }, () => {
  const cases = [["no camera", [], "granted", /No camera was found/],
                 ["a refused one", ["--use-fake-device-for-media-stream"], "denied",
                  /may not use the camera/]];
  for (const [what, flags, permission, words] of cases) {
    test(`tells ${what}`, LIMIT, async () => {
      const browser = await launch(...flags);
      const { page } = await openPage(browser);
      const session = await browser.target().createCDPSession();
      await session.send("Browser.setPermission", { permission: { name: "camera" },
                                                    setting: permission });
      await page.click("#use-camera");
      await page.waitForSelector("#camera.failed", { timeout: 30_000 });
      assert.match(await textOf(page, "#camera-news"), words);
      await browser.close();
    });
  }
});

function compareFaces(name, rows, faces) {
  assert.equal(rows.length, faces.length, `${name}: ${rows.length} faces, not ${faces.length}`);
  rows.forEach((row, i) => {
    const box = ({ x1, y1, x2, y2 }) => [x1, y1, x2, y2];
    const overlap = iou(box(row), box(faces[i]));
    assert.ok(overlap >= MIN_IOU, `${name}, face ${i + 1}: IoU ${overlap}`);
    for (const [field, tolerance] of [["age", MAX_AGE_ERROR], ["median", 0.15], ["std", 0.15],
                                      ["low", 0.3], ["high", 0.3], ["roll_deg", 0.02],
                                      ["confidence", 0.001]]) {
      assert.ok(Math.abs(row[field] - faces[i][field]) <= tolerance,
                `${name}, face ${i + 1}: ${field} ${row[field]}, not ${faces[i][field]}`);
    }
  });
}

/** Content of the file that a click on a button saves. */
async function saved(page, button, name, encoding = "utf8") {
  const folder = temporaryFolder();
  const session = await page.browser().target().createCDPSession();
  await session.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: folder });
  await page.$eval(button, (found) => found.click());
  for (let tries = 0; tries < 100; tries++) {
    if ((await readdir(folder)).includes(name)) return readFile(path.join(folder, name), encoding);
    await new Promise((resolve) => { setTimeout(resolve, 100); });
  }
  throw new Error(`${name} was not saved`);
}
