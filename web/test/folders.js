// Folders for what tests write.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";

const made = [];
process.on("exit", () => made.forEach((folder) => rmSync(folder, { recursive: true })));
// A signal alone ends the process without "exit"; the test runner sends one after a Ctrl-C.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => process.exit(1));

/** An empty folder, which is removed with all that is in it when the process ends. */
export function temporaryFolder() {
  const folder = mkdtempSync(path.join(tmpdir(), "page-"));
  made.push(folder);
  return folder;
}
