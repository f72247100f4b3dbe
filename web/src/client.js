// The page's side of the web worker.

export class EstimatorClient {
  #worker;
  #waiting = new Map();
  #lastId = 0;
  #failure = null; // EstimationError of a worker that has stopped

  /** @param code text of the worker's script. */
  constructor(code) {
    const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    this.#worker = new Worker(url);
    this.#worker.addEventListener("message", ({ data }) => this.#take(data));
    this.#worker.addEventListener("error", (event) => this.#fail(event.message));
  }

  /** Loads the networks; packed and model are described in worker.js. */
  load(packed, model, onProgress) {
    return this.#ask({ request: "load", packed, model }, { onProgress });
  }

  /**
   * Faces of a photo's file.
   *
   * @param minFaceRatio see predictor.js.
   * @param onProgress called with the share of the work that is done.
   * @returns { width, height, smallestFace, faces, crops, milliseconds }: the pixels of the photo
   *     and of the smallest face looked for; for each face what predictor.js gives, and its crop.
   * @throws EstimationError.
   */
  photo(file, minFaceRatio, onProgress) {
    return this.#ask({ request: "photo", file, minFaceRatio }, { onProgress });
  }

  /** Faces of an ImageBitmap, which is used up. Returns as photo() does. */
  frame(bitmap, minFaceRatio) {
    return this.#ask({ request: "frame", bitmap, minFaceRatio }, { transfer: [bitmap] });
  }

  #ask(message, { onProgress = () => {}, transfer = [] }) {
    if (this.#failure) return Promise.reject(this.#failure);
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, onProgress });
      this.#worker.postMessage({ ...message, id }, transfer);
    });
  }

  #take({ id, progress, result, error }) {
    if (this.#failure) return; // the answer to a request that was given up
    const { resolve, reject, onProgress } = this.#waiting.get(id);
    if (progress !== undefined) {
      onProgress(progress);
      return;
    }
    this.#waiting.delete(id);
    if (error) reject(new EstimationError(error));
    else resolve(result);
  }

  /** Gives the worker up: what it was doing when the error came is unknown. */
  #fail(message = "its script could not be loaded") {
    this.#worker.terminate();
    this.#failure = new EstimationError({ message, hasStopped: true });
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
  }
}

/**
 * Why there is no result. `unreadable`: the file is no picture; `hasStopped`: nothing more can be
 * asked for.
 */
export class EstimationError extends Error {
  constructor({ message, unreadable = false, hasStopped = false }) {
    super(message);
    this.unreadable = unreadable;
    this.hasStopped = hasStopped;
  }
}
