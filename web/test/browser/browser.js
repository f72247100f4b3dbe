// Chromium, the built page, and Python's results for it: what the tests of the page share.

import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";

import puppeteer from "puppeteer-core";

import { temporaryFolder } from "../folders.js";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const PAGE = path.join(HERE, "..", "..", "dist", "index.html");
const CHROMIUMS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const chromium = [process.env.CHROMIUM, ...CHROMIUMS].find((file) => file && existsSync(file));

export const PAGE_URL = pathToFileURL(PAGE).href;
export const PAGE_FILE = PAGE;

/** Why the page cannot be tested here, or false. */
export const skip = (!chromium && "Chromium is missing: apt-get install chromium, or set CHROMIUM")
  || (!existsSync(PAGE) && "the page is not built: make web");

/** Starts Chromium; flags are added to those every test has. */
export function launch(...flags) {
  return puppeteer.launch({
    executablePath: chromium,
    // Containers run as root, where Chromium has no sandbox. No address but our own is found.
    args: ["--no-sandbox", "--disable-gpu",
           "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", ...flags],
    protocolTimeout: 300_000,
  });
}

/**
 * A new tab with the page, ready.
 *
 * @returns { page, requests, errors }: of the tab all addresses asked for, and all errors of
 *     scripts, as they come.
 */
export async function openPage(browser, url = PAGE_URL) {
  const page = await browser.newPage();
  const requests = [];
  const errors = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => errors.push(error.message));
  await page.setViewport({ width: 1280, height: 900 });
  await page.goto(url, { waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => document.body.dataset.state !== "loading", { timeout: 120_000 });
  return { page, requests, errors };
}

/** The page on a host of its own: { url, paths, close }; paths are what was asked for. */
export async function servePage() {
  const content = await readFile(PAGE);
  const paths = [];
  const server = createServer((request, response) => {
    paths.push(request.url);
    response.setHeader("Content-Type", "text/html");
    response.end(content);
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => { server.once("listening", resolve); });
  return {
    url: `http://127.0.0.1:${server.address().port}/ages/`,
    paths,
    close() {
      server.closeAllConnections();
      server.close();
    },
  };
}

/** Gives the page files, and waits until each has a result or a problem. */
export async function addPhotos(page, ...files) {
  const before = await finishedPhotos(page);
  const input = await page.$("#photo-files");
  await input.uploadFile(...files);
  await waitForPhotos(page, before + files.length);
}

/** Drops files and folders on the page, as from a file manager. */
export async function dropPaths(page, ...files) {
  const session = await page.createCDPSession();
  const data = { items: [], files, dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await session.send("Input.dispatchDragEvent", { type, x: 300, y: 300, data });
  }
  await session.detach();
}

export function waitForPhotos(page, count) {
  return page.waitForFunction(
    (wanted) => document.querySelectorAll("article:not(:has(progress))").length >= wanted,
    { timeout: 280_000 }, count);
}

function finishedPhotos(page) {
  return page.$$eval("article:not(:has(progress))", (articles) => articles.length);
}

/** The rows of a photo's table as objects, numbers as numbers. */
export function tableOf(page, file) {
  return page.$eval(`article[aria-label="${file}"]`, (article) => {
    const names = [...article.querySelectorAll("th")].map((cell) => cell.textContent);
    return [...article.querySelectorAll("tbody tr")].map((row) => Object.fromEntries(
      [...row.cells].map((cell, i) => [names[i], Number.isNaN(Number(cell.textContent))
        ? cell.textContent : Number(cell.textContent)])));
  });
}

/** Text of the first element that a selector finds. */
export function textOf(page, selector) {
  return page.$eval(selector, (found) => found.innerText);
}

/**
 * Scenes and what AgeEstimator finds in them, made by expected.py.
 *
 * @param minFaceRatio of the page.
 * @returns { folder, faces: { file: faces } }.
 */
export async function expectedResults(minFaceRatio) {
  const folder = temporaryFolder();
  await promisify(execFile)(process.env.PYTHON ?? "python3", [
    path.join(HERE, "expected.py"), folder, "--min_face_ratio", String(minFaceRatio)]);
  const text = await readFile(path.join(folder, "expected.json"), "utf8");
  return { folder, faces: JSON.parse(text) };
}
