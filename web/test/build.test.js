import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { isSameModel, modelWarnings } from "../modelCard.js";
import { NETWORK_FILES, networkPaths } from "../networkFiles.js";
import { isDamaged, onnxMetadata } from "../onnxMetadata.js";
import { temporaryFolder } from "./folders.js";
import { entry, field } from "./onnxFields.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

test("reads the metadata of an ONNX file and steps over everything else", () => {
  const version = Buffer.from([1 << 3, 0x96, 1]); // a number of two bytes
  const file = Buffer.concat([version, field(7, Buffer.alloc(100)), entry("age_min", "0"),
                              entry("licence", "für Forschung")]);
  assert.deepEqual(onnxMetadata(file), { age_min: "0", licence: "für Forschung" });
});

test("says so where a file is no ONNX file or is cut off", () => {
  assert.throws(() => onnxMetadata(Buffer.from("hello, world")), /not an ONNX file/);
  assert.throws(() => onnxMetadata(entry("age_min", "0").subarray(0, 8)), /incomplete/);
});

test("tells a network that was damaged, of those that have a checksum", () => {
  const shipped = readFileSync(path.join(ROOT, NETWORK_FILES.age));
  assert.ok(!isDamaged(shipped));
  for (const place of [1000, shipped.length >> 1, shipped.indexOf("content_sha256") + 20]) {
    const other = Buffer.from(shipped);
    other[place] ^= 1;
    assert.ok(isDamaged(other), String(place));
  }
  assert.ok(!isDamaged(entry("age_min", "0")));
});

const card = readFileSync(path.join(ROOT, "MODEL_CARD.md"), "utf8");

test("takes the warnings from the model card", () => {
  const { warnings, ageCheckWarning } = modelWarnings(card, true);
  assert.ok(warnings.length > 1);
  assert.match(ageCheckWarning, /^as an age check .* \d+ .*refused$/);
  assert.ok(warnings.every((warning) => !/[\n*]|[;.:]$/.test(warning)));
  assert.throws(() => modelWarnings("# Model card\n", true), /It must not be used/);
});

test("of another model it repeats only what is true of any", () => {
  const { warnings, ageCheckWarning } = modelWarnings(card, false);
  assert.deepEqual(warnings, [
    "for decisions about a person: access, employment, insurance, asylum, policing",
    "as an age check without a margin; how often this model is wrong was not measured here",
    "to find out how old somebody is"]);
  assert.equal(ageCheckWarning, warnings[1]);
});

test("a model is another one if its weights, its temperature or its decode is", () => {
  const shipped = onnxMetadata(readFileSync(path.join(ROOT, NETWORK_FILES.age)));
  assert.ok(isSameModel({ ...shipped, commit: "of a later export" }, shipped));
  for (const key of ["source_sha256", "temperature", "decode"]) {
    assert.ok(!isSameModel({ ...shipped, [key]: "1" }, shipped), key);
  }
});

test("a build that cannot go on ends in one line", () => {
  const script = fileURLToPath(new URL("../build.js", import.meta.url));
  for (const [words, message] of [[["--networks", "nowhere"], /^error: the folder 'nowhere' holds/],
                                  [["--nosuch"], /^error: Unknown option '--nosuch'/]]) {
    const { status, stderr } = spawnSync(process.execPath, [script, ...words],
                                         { encoding: "utf8" });
    assert.equal(status, 2);
    assert.match(stderr, message);
    assert.equal(stderr.trim().split("\n").length, 1);
  }
});

test("takes the networks that a folder has, and the others from misc/", () => {
  const folder = temporaryFolder();
  assert.throws(() => networkPaths(folder), /holds none of mtcnn_pnet\.onnx, .*model\.onnx$/);
  writeFileSync(path.join(folder, "model.onnx"), "");
  const { age, propose } = networkPaths(folder);
  assert.equal(age, path.join(folder, "model.onnx"));
  assert.equal(propose, path.join(ROOT, NETWORK_FILES.propose));
});

const noMake = spawnSync("make", ["--version"]).error && "make is missing";

test("make web takes a folder with a space in its name", { skip: noMake }, () => {
  const { stderr } = spawnSync("make", ["--old-file=web/node_modules/.package-lock.json", "web",
                                        "WEB_NETWORKS=no such folder"],
                               { cwd: ROOT, encoding: "utf8" });
  assert.match(stderr, /error: the folder 'no such folder' holds none/);
});

test("the style has no selector that drops a whole rule in browsers of the build's target", () => {
  const style = readFileSync(path.join(ROOT, "web", "src", "style.css"), "utf8");
  assert.doesNotMatch(style, /:has\(/);
});
