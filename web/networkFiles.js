// Where the build finds the networks.

import { existsSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

// From the repository's root, in the order in which the page starts them. A folder of one's own has
// them under the same names.
export const NETWORK_FILES = {
  propose: "misc/mtcnn_pnet.onnx",
  refine: "misc/mtcnn_rnet.onnx",
  output: "misc/mtcnn_onet.onnx",
  age: "misc/model.onnx",
};

/**
 * @param folder whose networks are taken, or none. What it lacks is taken from misc/.
 * @returns { name: path }.
 * @throws Error if the folder has no network, or one is missing in both places.
 */
export function networkPaths(folder = null) {
  const networks = Object.entries(NETWORK_FILES).map(([name, file]) => {
    const own = folder !== null && path.join(folder, path.basename(file));
    return [name, own && existsSync(own) ? own : path.join(ROOT, file)];
  });
  const shipped = networks.filter(([name, file]) => file === path.join(ROOT, NETWORK_FILES[name]));
  if (folder !== null && shipped.length === networks.length) {
    const names = Object.values(NETWORK_FILES).map((file) => path.basename(file));
    throw new Error(`the folder '${folder}' holds none of ${names.join(", ")}`);
  }
  for (const [, file] of shipped) {
    if (!existsSync(file)) throw new Error(`'${file}' is missing; is the clone complete?`);
  }
  return Object.fromEntries(networks);
}
