// Builds web/dist/index.html: one file that holds the page, ONNX Runtime and the networks.
//
//     node web/build.js [--networks FOLDER] [--out FILE]

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";

import { isSameModel, modelWarnings } from "./modelCard.js";
import { NETWORK_FILES, networkPaths } from "./networkFiles.js";
import { isDamaged, onnxMetadata } from "./onnxMetadata.js";
import { DECODES } from "./src/metrics.js";

const WEB = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.dirname(WEB);
const DETECTOR_LICENCE = "misc/mtcnn_LICENSE.txt";
const SAMPLE = "misc/samples/two_faces.jpg";
const WASM = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm";
// The scripts and the style are translated for these; docs/web.md says which browsers were tried.
const TARGET = ["chrome99", "firefox114", "safari16.4"];
const PIECE = 500_000; // characters; the page counts the pieces that have arrived

const MODEL_NUMBERS = ["age_min", "age_max", "image_size", "margin"];
const MODEL_TEXTS = ["decode", "licence"];
const SHOWN_FACTS = { data_sets: "Trained on", licence: "Terms", image_size: "Input, pixels",
                      temperature: "Temperature", commit: "Code that trained it",
                      source_sha256: "sha256 of the weights" };

try {
  await main();
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
}

async function main() {
  const { values: args } = parseArgs({ options: {
    networks: { type: "string" },
    out: { type: "string", default: path.join(WEB, "dist", "index.html") },
  } });
  const networks = networkPaths(args.networks);
  if (!existsSync(path.join(WEB, "node_modules"))) {
    throw new Error("the npm packages are missing; make web installs them");
  }
  for (const file of Object.values(networks)) {
    if (isDamaged(await readFile(file))) {
      throw new Error(`network '${file}' is damaged: its checksum is wrong; fetch it again`);
    }
  }
  if (args.networks) console.log(`networks: ${Object.values(networks).join(", ")}`);
  const html = await buildPage(networks);
  await mkdir(path.dirname(args.out), { recursive: true });
  await writeFile(args.out, html);
  console.log(`${args.out}: ${(Buffer.byteLength(html) / 1e6).toFixed(1)} MB`);
}

/** Text of the whole page. */
async function buildPage(networks) {
  const metadata = onnxMetadata(await readFile(networks.age));
  const model = modelFacts(metadata, networks.age);
  const shipped = onnxMetadata(await readFile(path.join(ROOT, NETWORK_FILES.age)));
  const { warnings, ageCheckWarning } = modelWarnings(await readText(ROOT, "MODEL_CARD.md"),
                                                      isSameModel(metadata, shipped));
  const packed = await pack({ wasm: path.join(WEB, WASM), ...networks,
                              sample: path.join(ROOT, SAMPLE) });
  const style = await bundle("style.css");
  const page = await bundle("page.js");
  return fill(await readText(WEB, "src", "index.html"), {
    policy: contentSecurityPolicy(page, style),
    style,
    page,
    worker: await bundle("worker.js"),
    facts: JSON.stringify({ model, pieces: packed.length, sampleName: path.basename(SAMPLE) }),
    packed: packed.join("\n"),
    ageMin: String(model.age_min),
    ageMax: String(model.age_max),
    decode: model.decode,
    licence: escapeHtml(metadata.licence),
    ageCheckWarning: escapeHtml(ageCheckWarning),
    warnings: warnings.map((warning) => `<li>${escapeHtml(warning)}</li>`).join(""),
    modelFacts: Object.entries(SHOWN_FACTS).filter(([key]) => metadata[key])
      .map(([key, title]) => `<dt>${title}</dt><dd>${escapeHtml(metadata[key])}</dd>`).join(""),
    detectorLicence: folded("facenet-pytorch, MIT",
                            await readText(ROOT, DETECTOR_LICENCE)),
    packageLicences: (await packageLicences()).join(""),
  });
}

/** What the page needs to know of the age network. */
function modelFacts(metadata, file) {
  const missing = [...MODEL_NUMBERS, ...MODEL_TEXTS].filter((key) => !(key in metadata));
  if (missing.length) {
    throw new Error(`'${file}' has no metadata '${missing.join("', '")}'; write it anew with `
      + "export.py");
  }
  const wrong = MODEL_NUMBERS.find((key) => !Number.isFinite(Number(metadata[key] || NaN)))
    ?? (metadata.decode in DECODES ? null : "decode");
  if (wrong) {
    throw new Error(`'${file}' has the metadata '${wrong}' '${metadata[wrong]}', which export.py `
      + "does not write; write it anew with it");
  }
  return Object.fromEntries([
    ...MODEL_NUMBERS.map((key) => [key, Number(metadata[key])]),
    ...MODEL_TEXTS.map((key) => [key, metadata[key]]),
  ]);
}

/** Script elements that hold the files, gzip and base64, in pieces. */
async function pack(files) {
  const elements = [];
  for (const [name, file] of Object.entries(files)) {
    const base64 = gzipSync(await readFile(file), { level: 9 }).toString("base64");
    for (let at = 0; at < base64.length; at += PIECE) {
      elements.push(`<script type="text/plain" data-packed="${name}">`
        + `${base64.slice(at, at + PIECE)}</script>`);
    }
  }
  return elements;
}

/** A source file with all that it imports, as one text. */
async function bundle(file) {
  const { build } = await import("esbuild"); // not at the top: main() says if it is missing
  const { outputFiles: [{ text }] } = await build({
    entryPoints: [path.join(WEB, "src", file)],
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    define: { "import.meta.url": "self.location.href" }, // ONNX Runtime asks where it is
    target: TARGET,
    logLevel: "warning",
  });
  return text.trim();
}

/** Every connection is forbidden, and every script but the page's own. */
function contentSecurityPolicy(script, style) {
  return [
    "default-src 'none'",
    `script-src '${sha256(script)}' 'wasm-unsafe-eval'`,
    `style-src '${sha256(style)}'`,
    "worker-src blob:",
    "img-src blob: data:",
    "media-src blob:",
    "connect-src 'none'",
    "form-action 'none'",
    "base-uri 'none'",
  ].join("; ");
}

function sha256(text) {
  return `sha256-${createHash("sha256").update(text).digest("base64")}`;
}

/** One folded text a package that the page depends on. */
async function packageLicences() {
  const lock = JSON.parse(await readText(WEB, "package-lock.json"));
  const packages = Object.entries(lock.packages).filter(([place, { dev }]) => place && !dev);
  return Promise.all(packages.map(async ([place, { version, license }]) => {
    const name = place.slice(place.lastIndexOf("node_modules/") + "node_modules/".length);
    return folded(`${name} ${version}, ${license}`, await licenceText(place, name));
  }));
}

async function licenceText(place, name) {
  const candidates = [path.join(WEB, place, "LICENSE"), path.join(WEB, place, "LICENSE.md"),
                      path.join(WEB, "licences", `${name}.txt`)];
  const file = candidates.find((candidate) => existsSync(candidate));
  return file ? readFile(file, "utf8") : "";
}

function folded(title, text) {
  if (!text) return `<p>${escapeHtml(title)}</p>`;
  return `<details><summary>${escapeHtml(title)}</summary><pre>${escapeHtml(text)}</pre></details>`;
}

/** The template with each {{name}} filled in. */
function fill(template, parts) {
  return template.replaceAll(/\{\{(\w+)\}\}/g, (_, name) => {
    if (!(name in parts)) throw new Error(`index.html asks for an unknown part '${name}'`);
    return parts[name];
  });
}

function escapeHtml(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function readText(...parts) {
  return readFile(path.join(...parts), "utf8");
}
