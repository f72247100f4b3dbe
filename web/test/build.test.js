import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { modelWarnings } from "../modelCard.js";
import { onnxMetadata } from "../onnxMetadata.js";

/** A protobuf field that holds bytes, shorter than 128. */
function field(number, content) {
  return Buffer.concat([Buffer.from([(number << 3) | 2, content.length]), Buffer.from(content)]);
}

function entry(key, value) {
  return field(14, Buffer.concat([field(1, Buffer.from(key)), field(2, Buffer.from(value))]));
}

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

test("takes the warnings from the model card", () => {
  const card = readFileSync(new URL("../../MODEL_CARD.md", import.meta.url), "utf8");
  const { warnings, ageCheckWarning } = modelWarnings(card);
  assert.ok(warnings.length > 1);
  assert.match(ageCheckWarning, /^as an age check .*refused$/);
  assert.ok(warnings.every((warning) => !/[\n*]|[;.]$/.test(warning)));
  assert.throws(() => modelWarnings("# Model card\n"), /It must not be used/);
});

test("a build that cannot go on ends in one line", () => {
  const script = fileURLToPath(new URL("../build.js", import.meta.url));
  for (const [words, message] of [[["--networks", "nowhere"], /^error: the network .* missing/],
                                  [["--nosuch"], /^error: Unknown option '--nosuch'/]]) {
    const { status, stderr } = spawnSync(process.execPath, [script, ...words],
                                         { encoding: "utf8" });
    assert.equal(status, 2);
    assert.match(stderr, message);
    assert.equal(stderr.trim().split("\n").length, 1);
  }
});
