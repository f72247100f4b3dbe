// The web worker: everything that takes time, so that the page never freezes.
//
// Each message asks for one thing and has an id; the answer has the same id. The page's side is
// client.js.

import { unpack } from "./assets.js";
import { NETWORK_NAMES, loadNetwork, startRuntime } from "./networks.js";
import { UnreadablePhoto, pixelsOf, readPhoto } from "./photos.js";
import { AgeEstimator, smallestFace } from "./predictor.js";

let estimator = null;
let queue = Promise.resolve(); // a network does one thing at a time

self.addEventListener("message", ({ data }) => {
  queue = queue.then(() => answer(data));
});

async function answer({ id, request, ...content }) {
  const report = (progress) => self.postMessage({ id, progress });
  try {
    self.postMessage({ id, result: await REQUESTS[request](content, report) });
  } catch (error) {
    const unreadable = error instanceof UnreadablePhoto;
    self.postMessage({ id, error: { unreadable, message: String(error?.message ?? error) } });
  }
}

const REQUESTS = {
  /** Starts the runtime and loads the networks; packed: { wasm, propose, refine, output, age }. */
  async load({ packed, model }, report) {
    startRuntime(await unpack(packed.wasm));
    const networks = {};
    for (const [index, name] of NETWORK_NAMES.entries()) {
      report((index + 1) / (NETWORK_NAMES.length + 1));
      networks[name] = await loadNetwork(await unpack(packed[name]));
    }
    estimator = new AgeEstimator(networks, model);
  },

  /** Faces of a photo's file. */
  async photo({ file, minFaceRatio }, report) {
    const photo = await readPhoto(file);
    return estimate(photo, minFaceRatio, inSteps(report));
  },

  /** Faces of a frame of the camera, an ImageBitmap. */
  async frame({ bitmap, minFaceRatio }) {
    return estimate(pixelsOf(bitmap), minFaceRatio);
  },
};

async function estimate(photo, minFaceRatio, report) {
  const started = performance.now();
  const found = await estimator.estimate(photo, minFaceRatio, report);
  return {
    width: photo.width,
    height: photo.height,
    smallestFace: smallestFace(photo, minFaceRatio),
    faces: found.map(({ face }) => face),
    crops: found.map(({ crop }) => crop),
    milliseconds: performance.now() - started,
  };
}

/** Reports only every twentieth: the first pass looks at thousands of windows. */
function inSteps(report) {
  let last = 0;
  return (share) => {
    if (share - last < 0.05) return;
    last = share;
    report(share);
  };
}
