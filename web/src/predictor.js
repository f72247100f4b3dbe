// Photo in, faces with ages out, as predictor.py has it.

import { asListed, cropFace, resizeFace, turnedBox } from "./face.js";
import { FaceDetector } from "./detector.js";
import { DECODES, INTERVAL_SHARE, centralInterval, distributionMedian, distributionStd }
  from "./metrics.js";

export const MIN_FACE = 20; // pixels
export const MIN_CONFIDENCE = 0.9; // of the detector, below which most of what it finds is no face
// Shares of a picture's shorter side: smaller faces are not looked for, which makes large photos
// quicker; they are rarely meant. demo.py does so in streams, by the same share.
export const PHOTO_FACE_RATIO = 0.02; // unless the user asks for very small faces
export const STREAM_FACE_RATIO = 0.1;

export class AgeEstimator {
  /**
   * @param networks see networks.js.
   * @param model the age network's facts: { ageBins, image_size, margin, decode }.
   */
  constructor(networks, model) {
    this.networks = networks;
    this.model = model;
  }

  /**
   * Faces of one photo.
   *
   * @param photo picture (see pillow.js), upright.
   * @param minFaceRatio share of the photo's shorter side: smaller faces are not looked for.
   * @param onProgress called with the share of the work that is done, 0..1.
   * @returns list of { face, crop }, the largest first: a face of faceFromProbs(), and the square
   *     picture of it that the age network saw.
   */
  async estimate(photo, minFaceRatio = 0, onProgress = () => {}) {
    const detector = new FaceDetector(this.networks, MIN_FACE, minFaceRatio);
    const aligned = await detector.align(photo, onProgress);
    const faces = [];
    for (const found of aligned) {
      if (found.confidence >= MIN_CONFIDENCE) faces.push(await this.#aged(photo, found));
    }
    return faces;
  }

  async #aged(photo, found) {
    const { ageBins, image_size: side, margin, decode } = this.model;
    const crop = cutFace(photo, found, margin, side);
    const [probs] = await this.networks.age(toPixels(crop), [1, 3, side, side]);
    const face = faceFromProbs(found.box, found.confidence, found.rollDeg, probs.data, ageBins,
                               decode);
    return { face, crop };
  }
}

/** The face as the network gets it, pixel for pixel as in training; found is the detector's. */
function cutFace(photo, found, marginRatio, side) {
  // Training leaves a face out whose second pass found nothing; here it gets the first pass's box
  // around the same point.
  const box = found.alignedBox
    ?? turnedBox(found.box, [photo.width, photo.height], found.rollDeg);
  const [rollDeg, listedBox] = asListed(found.rollDeg, box);
  return resizeFace(cropFace(photo, listedBox, rollDeg, marginRatio), side);
}

/** Pixels, side of the smallest face that is looked for in a photo of this size. */
export function smallestFace({ width, height }, minFaceRatio) {
  return Math.max(MIN_FACE, minFaceRatio * Math.min(width, height));
}

/**
 * A face from where it is and how its age is distributed; its fields are those of the
 * tables, and probs.
 *
 * @param box [x1, y1, x2, y2] pixels.
 * @param confidence the detector's, 0..1.
 * @param rollDeg degrees.
 * @param probs distribution over ageBins.
 * @param decode of metrics.DECODES.
 */
export function faceFromProbs([x1, y1, x2, y2], confidence, rollDeg, probs, ageBins, decode) {
  const [low, high] = centralInterval(probs, ageBins, INTERVAL_SHARE);
  return {
    x1, y1, x2, y2, confidence, roll_deg: rollDeg,
    age: DECODES[decode](probs, ageBins),
    median: distributionMedian(probs, ageBins),
    std: distributionStd(probs, ageBins),
    low, high, probs,
  };
}

/** Picture -> 3 x S x S bytes, all of one colour together, as the network takes them. */
function toPixels({ width, height, data }) {
  const plane = width * height;
  const pixels = new Uint8Array(3 * plane);
  for (let i = 0; i < plane; i++) {
    pixels[i] = data[4 * i];
    pixels[plane + i] = data[4 * i + 1];
    pixels[2 * plane + i] = data[4 * i + 2];
  }
  return pixels;
}
