import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { test } from "node:test";

import { temporaryFolder } from "./folders.js";

test("what tests write is removed when they end", () => {
  const tmp = temporaryFolder();
  const script = `import { temporaryFolder } from "${new URL("folders.js", import.meta.url)}";
    import { readdirSync, writeFileSync } from "node:fs";
    temporaryFolder();
    writeFileSync(temporaryFolder() + "/a.txt", "a");
    console.log(readdirSync(process.env.TMPDIR).length);`;
  const written = execFileSync(process.execPath, ["--input-type=module", "--eval", script],
                               { env: { ...process.env, TMPDIR: tmp }, encoding: "utf8" });
  assert.equal(written.trim(), "2");
  assert.deepEqual(readdirSync(tmp), []);
});
