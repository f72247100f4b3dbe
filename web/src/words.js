// What the page says, where it depends on what happened.

import { probabilityOfAtLeast } from "./metrics.js";
import { MIN_FACE } from "./predictor.js";
import { UNREADABLE } from "./results.js";

/** "one face", "3 faces". */
export function faceCount(count) {
  return count === 1 ? "one face" : `${count} faces`;
}

/** "5 of 12 photos done"; nothing for a single photo, whose card says it. */
export function progressText(done, count) {
  return count > 1 ? `${done} of ${count} photos done` : "";
}

/** "86 years, 80% interval 80 to 92". */
export function ageSentence({ age, low, high }) {
  return `${age.toFixed()} years, 80% interval ${low.toFixed()} to ${high.toFixed()}`;
}

/** What a photo shows, in one sentence. */
export function photoSentence(name, faces) {
  if (!faces.length) return `${name}: no face was found.`;
  return `${name}: ${faceCount(faces.length)}. ${faces.map(ageSentence).join("; ")}.`;
}

/** Probability of being at least `threshold` years old, in words that never claim to be sure. */
export function thresholdText(probs, ageBins, threshold) {
  const percent = 100 * probabilityOfAtLeast(probs, ageBins, threshold);
  if (percent < 0.1) return "under 0.1%";
  if (percent > 99.9) return "over 99.9%";
  return `${percent.toFixed(1)}%`;
}

/** Why a photo may have no face; smallest: pixels of the smallest face looked for. */
export function noFaceWords(smallest) {
  const more = smallest > MIN_FACE
    ? " For smaller ones tick “Look for very small faces” and choose the photo again." : "";
  return "No face was found. A face is found when both its eyes can be seen and it is at least "
    + `${Math.round(smallest)} pixels high.${more}`;
}

/** Why a photo has no result: { status for the table, words for the page }. */
export function photoProblem(name, error) {
  if (error.unreadable) {
    const words = /\.hei[cf]$/i.test(name)
      ? "This browser cannot read HEIC photos; Safari can. Save the photo as JPEG and try again."
      : "This file cannot be read as a picture. It may be damaged, incomplete, too large for this "
        + "browser, or no picture at all. JPEG, PNG, WebP, AVIF, GIF and BMP can be read.";
    return { status: `${UNREADABLE}: ${error.message}`, words };
  }
  if (error.hasStopped) return { status: `failed: ${error.message}`, words: stoppedWords(error) };
  const words = /alloc|memory|too large/i.test(error.message)
    ? "This photo is too large for the browser's memory. Make it smaller and try again."
    : `Something went wrong with this photo: ${error.message}`;
  return { status: `failed: ${error.message}`, words };
}

function stoppedWords({ message }) {
  return `The networks have stopped (${message}). Save the results that are there, then load the `
    + "page again.";
}

/** Why a picture is not saved. */
export function unsavedWords({ width, height }) {
  return `The browser cannot save this picture of ${width} × ${height} pixels. It may be too `
    + "large.";
}

/** Why a folder gives no photos. */
export function emptyFolderWords(name) {
  return `The folder “${name}” holds no photos.`;
}

export function folderProblem(name, error) {
  return `The folder “${name}” cannot be read: ${error.message}`;
}

const CAMERA_WORDS = {
  NotAllowedError: "The browser may not use the camera. Allow it where the page's address is shown "
    + "(the symbol of a camera or a lock), then try again.",
  NotFoundError: "No camera was found. Connect one, or choose photos instead.",
  NotReadableError: "The camera does not answer. Another program may be using it: close that one "
    + "and try again.",
};
CAMERA_WORDS.OverconstrainedError = CAMERA_WORDS.NotFoundError; // a camera that was unplugged
CAMERA_WORDS.SecurityError = CAMERA_WORDS.NotAllowedError;

export const NO_CAMERA_HERE = "The browser gives this page no camera. It does so for pages with an "
  + "https:// address, and for a file opened from a disk.";
export const CAMERA_ENDED = "The camera has stopped: it was disconnected or switched off.";

/** Why the camera cannot be used. */
export function cameraProblem(error) {
  if (error.hasStopped) return stoppedWords(error);
  return CAMERA_WORDS[error.name] ?? `The camera cannot be used: ${error.message}`;
}

const NEEDED = ["WebAssembly", "DecompressionStream", "OffscreenCanvas", "Worker"];

/** What this browser lacks, or an empty text. */
export function browserProblem() {
  const missing = NEEDED.filter((name) => !(name in globalThis));
  if (!missing.length) return "";
  return `This browser is too old for the page: it lacks ${missing.join(", ")}. Take a newer `
    + "version of Chrome, Edge, Firefox or Safari.";
}

/** Why the networks did not start. */
export function startProblem(error) {
  return `The networks could not be started: ${error.message}. Load the page again; if that does `
    + "not help, try another browser or close other tabs.";
}
