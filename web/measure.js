// Measures the built page in Chromium: bytes, seconds to ready, a photo, one more face, the camera.
//
//     node web/measure.js [--camera CLIP.mjpeg] PHOTO.jpg GROUP.jpg
//
// GROUP is the same size as PHOTO and has more faces: the difference is what one more face takes.
// CPU time is that of Chromium's process for the page, and depends less on what else is running.

import { statSync } from "node:fs";
import { loadavg } from "node:os";
import { parseArgs } from "node:util";

import { PAGE_FILE, addPhotos, launch, openPage, textOf } from "./test/browser/browser.js";

const RUNS = 5;
const CAMERA_SECONDS = 15;

const { values: { camera }, positionals: [photo, group] } = parseArgs({
  options: { camera: { type: "string" } }, allowPositionals: true });

const flags = camera ? ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
                        `--use-file-for-fake-video-capture=${camera}`] : [];
console.log(`${statSync(PAGE_FILE).size} bytes`);
report("from opening to ready", await repeated(async () => {
  const browser = await launch(...flags);
  const cost = await costOf(browser, () => openPage(browser));
  await browser.close();
  return cost;
}));

const browser = await launch(...flags);
const { page } = await openPage(browser);
await addPhotos(page, photo, group); // the first ones also compile
const one = await repeated(() => costOf(browser, () => addPhotos(page, photo)));
report("a photo", one);
const many = await repeated(() => costOf(browser, () => addPhotos(page, group)));
const [more, fewer] = [await faceCount(group), await faceCount(photo)];
report(`a photo with ${more} faces, not ${fewer}`, many);
console.log(`one more face: ${((median(many, "cpu") - median(one, "cpu")) / (more - fewer))
  .toFixed(0)} ms of CPU time`);
if (camera) await measureCamera();
await browser.close();

async function measureCamera() {
  await page.click("#use-camera");
  await page.waitForFunction(() => document.getElementById("camera-news").textContent
    .includes("frames/s"), { timeout: 60_000 });
  await new Promise((resolve) => { setTimeout(resolve, 1000 * CAMERA_SECONDS); });
  console.log(`camera: ${await textOf(page, "#camera-news")}; load ${loadavg()[0].toFixed(1)}`);
}

async function repeated(measure) {
  const costs = [];
  for (let run = 0; run < RUNS; run++) costs.push(await measure());
  return costs;
}

/** Milliseconds of the wall clock and of the page's CPU time that an action takes. */
async function costOf(browser, action) {
  const before = { wall: performance.now(), cpu: await cpuTime(browser) };
  await action();
  return { wall: performance.now() - before.wall, cpu: await cpuTime(browser) - before.cpu };
}

async function cpuTime(browser) {
  const session = await browser.target().createCDPSession();
  const { processInfo } = await session.send("SystemInfo.getProcessInfo");
  await session.detach();
  return 1000 * processInfo.filter(({ type }) => type === "renderer")
    .reduce((sum, { cpuTime: seconds }) => sum + seconds, 0);
}

async function faceCount(file) {
  const name = file.split("/").at(-1);
  return page.$eval(`article[aria-label="${name}"] .faces`, (list) => list.children.length);
}

function report(what, costs) {
  const parts = ["wall", "cpu"].map((kind) => {
    const values = costs.map((cost) => cost[kind]);
    return `${median(costs, kind).toFixed(0)} ms ${kind} `
      + `(${Math.min(...values).toFixed(0)}-${Math.max(...values).toFixed(0)})`;
  });
  console.log(`${what}: ${parts.join(", ")}; load ${loadavg()[0].toFixed(1)}`);
}

function median(costs, kind) {
  return costs.map((cost) => cost[kind]).sort((a, b) => a - b)[Math.floor(costs.length / 2)];
}
