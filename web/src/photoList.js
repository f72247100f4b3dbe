// All photos on the page: their names, whose turn it is, how many are done, their common table.

import { announce, byId } from "./dom.js";
import { PhotoCard } from "./photoCard.js";
import { resultButtons } from "./resultTable.js";
import { stem } from "./saving.js";
import { uprightFile } from "./webp.js";
import { progressText } from "./words.js";

export class PhotoList {
  #started;
  #ageBins;
  #threshold;
  #cards = new Set(); // in the order in which they were added
  #turn = Promise.resolve(); // ends when all photos added so far have had theirs
  #buttons;

  /**
   * @param started promise of { client }, an EstimatorClient.
   * @param ageBins years.
   * @param threshold Threshold.
   */
  constructor(started, ageBins, threshold) {
    this.#started = started;
    this.#ageBins = ageBins;
    this.#threshold = threshold;
    this.#buttons = resultButtons(() => [...this.#cards].flatMap(({ rows }) => rows), "results");
    byId("results-actions").append(...this.#buttons);
  }

  /**
   * Adds photos, which then wait for their turns.
   *
   * @param photos list of { file, name }; a name that another photo has is changed.
   * @param minFaceRatio see predictor.js.
   */
  add(photos, minFaceRatio) {
    const taken = new Set([...this.#cards].map((card) => card.name));
    const added = photos.map(({ file, name }) => {
      const ownName = distinctName(name, taken);
      taken.add(ownName);
      const card = new PhotoCard(file, ownName, this.#ageBins, () => this.#remove(card));
      this.#cards.add(card);
      // One photo at a time, so that one taken away costs nothing, and the camera's next frame,
      // which does not wait here, goes before the next photo.
      this.#turn = this.#turn.then(() => this.#estimate(card, minFaceRatio));
      return card.element;
    });
    byId("photos").prepend(...added);
    this.#showProgress();
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
    const progress = this.#showProgress();
    announce(progress ? `${card.summary} ${progress}.` : card.summary);
  }

  #remove(card) {
    const { element } = card;
    const next = element.nextElementSibling ?? element.previousElementSibling;
    card.remove();
    this.#cards.delete(card);
    this.#showProgress();
    // The button that had the focus is gone; the next one is not scrolled to.
    (next?.querySelector(".remove") ?? byId("choose-photos")).focus({ preventScroll: true });
  }

  /** Shows how many photos are done, and returns the text of it. */
  #showProgress() {
    const done = [...this.#cards].filter(({ isDone }) => isDone).length;
    const text = progressText(done, this.#cards.size);
    document.body.classList.toggle("has-photos", this.#cards.size > 0);
    byId("results-progress").textContent = text;
    for (const button of this.#buttons) button.disabled = done < this.#cards.size;
    return text;
  }
}

/** The name itself, or with a number before its ending if it is taken: "a (2).jpg". */
export function distinctName(name, taken) {
  const base = stem(name);
  const ending = name.slice(base.length);
  let distinct = name;
  for (let number = 2; taken.has(distinct); number++) distinct = `${base} (${number})${ending}`;
  return distinct;
}
