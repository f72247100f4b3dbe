// The four networks on ONNX Runtime's WebAssembly.

import * as ort from "onnxruntime-web/wasm";

/** Where each network's file goes: the names that mtcnn.js and predictor.js call them by. */
export const NETWORK_NAMES = ["propose", "refine", "output", "age"];

/**
 * Starts the runtime.
 *
 * @param wasm bytes of its WebAssembly. Without them it would fetch a file.
 */
export function startRuntime(wasm) {
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1; // more need a cross-origin isolated page, and a file is none
}

/**
 * Loads one network.
 *
 * @param bytes ONNX file.
 * @returns function (numbers, dims) -> list of the outputs, each { data, dims }:
 *     propose: (N, 3, H, W) in -1..1 -> offsets (N, 4, h, w), probabilities (N, 2, h, w);
 *     refine: (N, 3, 24, 24) -> offsets (N, 4), probabilities (N, 2);
 *     output: (N, 3, 48, 48) -> offsets (N, 4), landmarks (N, 10), probabilities (N, 2);
 *     age: (N, 3, S, S) bytes -> probabilities (N, K).
 */
export async function loadNetwork(bytes) {
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const [inputName] = session.inputNames;
  return async (numbers, dims) => {
    const type = numbers instanceof Uint8Array ? "uint8" : "float32";
    const outputs = await session.run({ [inputName]: new ort.Tensor(type, numbers, dims) });
    return session.outputNames.map((name) => outputs[name]);
  };
}
