// Where the build finds the networks.

import { existsSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

// From the repository's root; --networks takes files of the same names from one folder instead.
// The order is that in which the page starts them.
export const NETWORK_FILES = {
  propose: "misc/mtcnn_pnet.onnx",
  refine: "misc/mtcnn_rnet.onnx",
  output: "misc/mtcnn_onet.onnx",
  age: "misc/model.onnx",
};

/**
 * @param folder that holds networks under the names of NETWORK_FILES, or none for the shipped ones.
 * @returns { name: path }.
 */
export function networkPaths(folder) {
  const paths = Object.entries(NETWORK_FILES).map(([name, file]) =>
    [name, folder ? path.join(folder, path.basename(file)) : path.join(ROOT, file)]);
  for (const [, file] of paths) {
    if (!existsSync(file)) {
      throw new Error(`the network '${file}' is missing; is the clone complete? --networks FOLDER `
        + "takes the networks from another folder");
    }
  }
  return Object.fromEntries(paths);
}
