// Faces followed through the camera's frames, as media/tracking.py has it: each face keeps its
// number and its colour, and its age does not jump. There is no optical flow between detections.

import { iou } from "./face.js";
import { faceFromProbs } from "./predictor.js";

export const MIN_IOU = 0.3; // of a detected box and a track's box that are the same face
export const MAX_MISSES = 4; // detections in a row that miss a face; then its track ends
export const MIN_NEWEST_WEIGHT = 0.1; // of the newest distribution in a track's average
export const SMOOTHING = 0.6; // weight of a detected box against the one before

export class FaceTracker {
  #tracks = []; // { number, face, box, probs, estimates, misses }
  #count = 0;

  /** @param model { ageBins, decode }. */
  constructor(model) {
    this.model = model;
  }

  /**
   * Takes the faces of the next frame.
   *
   * @param faces of predictor.js.
   * @returns list of { number, face } of the faces seen, in order of appearance.
   */
  update(faces) {
    const boxes = faces.map(({ x1, y1, x2, y2 }) => [x1, y1, x2, y2]);
    const matches = matchBoxes(this.#tracks.map(({ box }) => box), boxes);
    for (const track of this.#tracks) track.misses++; // back to 0 where it is matched
    faces.forEach((face, i) => {
      if (matches.has(i)) addTo(this.#tracks[matches.get(i)], face, boxes[i]);
      else this.#begin(face, boxes[i]);
    });
    this.#tracks = this.#tracks.filter(({ misses }) => misses < MAX_MISSES);
    return this.#tracks.filter(({ misses }) => misses === 0)
      .map((track) => ({ number: track.number, face: this.#faceOf(track) }));
  }

  #begin(face, box) {
    const number = ++this.#count;
    this.#tracks.push({ number, face, box, probs: face.probs, estimates: 1, misses: 0 });
  }

  #faceOf({ face, box, probs }) {
    const { ageBins, decode } = this.model;
    return faceFromProbs(box, face.confidence, face.roll_deg, probs, ageBins, decode);
  }
}

function addTo(track, face, box) {
  track.estimates++;
  const newest = Math.max(1 / track.estimates, MIN_NEWEST_WEIGHT);
  track.probs = track.probs.map((prob, i) => prob + newest * (face.probs[i] - prob));
  track.box = box.map((value, i) => value + (1 - SMOOTHING) * (track.box[i] - value));
  track.face = face;
  track.misses = 0;
}

/**
 * Pairs of boxes with IoU of at least MIN_IOU, best first, each box once.
 *
 * @returns Map, index of a detected box -> index of its tracked box.
 */
export function matchBoxes(tracked, detected) {
  const pairs = tracked.flatMap((box, i) =>
    detected.map((other, j) => ({ i, j, overlap: iou(box, other) })));
  const matches = new Map();
  const used = new Set();
  for (const { i, j, overlap } of pairs.sort((one, other) => other.overlap - one.overlap)) {
    if (overlap >= MIN_IOU && !matches.has(j) && !used.has(i)) {
      matches.set(j, i);
      used.add(i);
    }
  }
  return matches;
}
