import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { test } from "node:test";

import { temporaryFolder } from "./folders.js";

const ENDS = { end: "", "are stopped": 'process.kill(process.pid, "SIGTERM");' };

for (const [how, ending] of Object.entries(ENDS)) {
  test(`what tests write is removed when they ${how}`, () => {
    const tmp = temporaryFolder();
    const script = `import { temporaryFolder } from "${new URL("folders.js", import.meta.url)}";
      import { readdirSync, writeFileSync } from "node:fs";
      temporaryFolder();
      writeFileSync(temporaryFolder() + "/a.txt", "a");
      console.log(readdirSync(process.env.TMPDIR).length);
      ${ending}
      setTimeout(() => {}, 200);`;
    const { stdout } = spawnSync(process.execPath, ["--input-type=module", "--eval", script],
                                 { env: { ...process.env, TMPDIR: tmp }, encoding: "utf8" });
    assert.equal(stdout.trim(), "2");
    assert.deepEqual(readdirSync(tmp), []);
  });
}
