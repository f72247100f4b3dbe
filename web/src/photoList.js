// All photos on the page: whose turn it is, their common table.

import { announce, byId } from "./dom.js";
import { PhotoCard } from "./photoCard.js";
import { resultButtons } from "./resultTable.js";
import { uprightFile } from "./webp.js";

export class PhotoList {
  #started;
  #ageBins;
  #threshold;
  #cards = new Set(); // in the order in which they were added
  #turn = Promise.resolve(); // ends when all photos added so far have had theirs

  /**
   * @param started promise of { client }, an EstimatorClient.
   * @param ageBins years.
   * @param threshold Threshold.
   */
  constructor(started, ageBins, threshold) {
    this.#started = started;
    this.#ageBins = ageBins;
    this.#threshold = threshold;
    byId("results-actions").append(
      ...resultButtons(() => [...this.#cards].flatMap(({ rows }) => rows), "results"));
  }

  /**
   * Adds photos, which then wait for their turns.
   *
   * @param photos list of { file, name }.
   * @param minFaceRatio see predictor.js.
   */
  add(photos, minFaceRatio) {
    const added = photos.map(({ file, name }) => {
      const card = new PhotoCard(file, name, this.#ageBins, () => this.#remove(card));
      this.#cards.add(card);
      // One photo at a time, so that one taken away costs nothing, and the camera's next frame,
      // which does not wait here, goes before the next photo.
      this.#turn = this.#turn.then(() => this.#estimate(card, minFaceRatio));
      return card.element;
    });
    byId("photos").prepend(...added);
    this.#showCount();
  }

  async #estimate(card, minFaceRatio) {
    const isGone = () => !this.#cards.has(card); // taken away, at any time
    if (isGone()) return;
    try {
      const { client } = await this.#started;
      const upright = await uprightFile(card.file);
      if (isGone()) return;
      if (upright !== card.file) card.showPicture(upright);
      card.showProgress(0);
      const result = await client.photo(upright, minFaceRatio, (share) => card.showProgress(share));
      if (!isGone()) card.showResult(result, this.#threshold);
    } catch (error) {
      if (!isGone()) card.showProblem(error);
    }
    if (isGone()) return;
    announce(card.summary);
  }

  #remove(card) {
    card.remove();
    this.#cards.delete(card);
    this.#showCount();
    byId("choose-photos").focus(); // the button that had it is gone
  }

  /** Shows whether there are photos. */
  #showCount() {
    document.body.classList.toggle("has-photos", this.#cards.size > 0);
  }
}
