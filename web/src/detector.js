// Faces in photos and their upright alignment, as preprocess/detector.py has it: the two passes
// that every face of the project goes through.

import { cropFace, iou, rollFromLandmarks, rotationToCanvas, turnedBox } from "./face.js";
import { SummedPhoto, findFaces, photoPart, propose, pyramid, windows } from "./mtcnn.js";

export const SPAN = 4; // levels finer than face size / SPAN are ignored: they cannot change the box
export const REACH = 1; // the second pass looks this many face sizes around the face's centre
export const MIN_SAME_FACE_IOU = 0.2; // of the boxes that the two passes find for one face

export class FaceDetector {
  /**
   * @param networks see networks.js.
   * @param minFaceSize pixels, smallest side of a face looked for.
   * @param minFaceRatio the same as a share of a photo's shorter side, 0 for no such limit.
   */
  constructor(networks, minFaceSize, minFaceRatio = 0) {
    this.networks = networks;
    this.minFaceSize = minFaceSize;
    this.minFaceRatio = minFaceRatio;
  }

  /**
   * Both passes: find all faces, and find each again in the photo turned upright.
   *
   * @param photo picture (see pillow.js), upright.
   * @param onProgress called with the share of the first pass that is done, 0..1.
   * @returns list, the largest face first, of { box, confidence, rollDeg, alignedBox }. The box is
   *     the first pass's; alignedBox lies in the rotated canvas and is null where the second pass
   *     finds no face; the confidence is the second pass's where it finds one.
   */
  async align(photo, onProgress = () => {}) {
    const faces = await this.#detectAll(photo, onProgress);
    const aligned = [];
    for (const face of faces) aligned.push(await this.#secondPass(photo, face));
    return aligned;
  }

  async #detectAll(photo, onProgress) {
    const size = [photo.width, photo.height];
    const scan = this.#levels(size).flatMap((level) => windows(level, size));
    let done = 0;
    return this.#find(new SummedPhoto(photo), scan, () => onProgress(++done / scan.length));
  }

  async #secondPass(photo, { box, score, landmarks }) {
    const rollDeg = rollFromLandmarks(landmarks);
    const expectedBox = turnedBox(box, [photo.width, photo.height], rollDeg);
    const upright = closest(await this.#findNear(photo, expectedBox, rollDeg), expectedBox);
    return { box, rollDeg, confidence: upright?.score ?? score, alignedBox: upright?.box ?? null };
  }

  /** Faces about as large as a given one and around it, in the photo turned by rollDeg. */
  async #findNear(photo, box, rollDeg) {
    const size = rotationToCanvas([photo.width, photo.height], rollDeg).canvasSize;
    const scan = this.#nearbyWindows(box, size);
    if (!scan.length) return [];
    const part = photoPart(scan, size);
    const summed = new SummedPhoto(cropFace(photo, part, rollDeg, 0), size, part.slice(0, 2));
    return this.#find(summed, scan);
  }

  #nearbyWindows([x1, y1, x2, y2], size) {
    const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2];
    const side = Math.max(x2 - x1, y2 - y1);
    const reach = REACH * side;
    const region = [x - reach, y - reach, x + reach, y + reach];
    return this.#levels(size)
      .filter(({ faceSize }) => side / SPAN <= faceSize && faceSize <= 2 * reach)
      .flatMap((level) => windows(level, size, region));
  }

  async #find(summed, scan, onWindow) {
    const proposals = await propose(summed, scan, this.networks, onWindow);
    return findFaces(summed, proposals, this.networks);
  }

  #levels(size) {
    const levels = pyramid(size, this.minFaceSize);
    const least = this.minFaceRatio * Math.min(...size);
    const large = levels.filter(({ faceSize }) => faceSize >= least);
    return large.length ? large : levels.slice(-1);
  }
}

/** The face whose box overlaps the given one most; undefined where none is the same face. */
function closest(faces, box) {
  return faces
    .map((face) => ({ ...face, overlap: iou(face.box, box) }))
    .filter(({ overlap }) => overlap > MIN_SAME_FACE_IOU)
    .sort((face, other) => other.overlap - face.overlap)[0];
}
