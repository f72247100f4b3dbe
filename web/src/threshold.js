// The slider "at least N years".

import { byId } from "./dom.js";

export class Threshold {
  #listeners = new Set();

  /** @param ageBins years; the slider runs over them. */
  constructor(ageBins) {
    this.slider = byId("threshold");
    this.slider.min = ageBins[0] + 1; // everybody is at least as old as the first
    this.slider.max = ageBins.at(-1);
    this.slider.addEventListener("input", () => this.#show());
    this.#show();
  }

  get age() {
    return Number(this.slider.value);
  }

  /** Calls listener(age) whenever the slider moves; returns a function that ends this. */
  listen(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #show() {
    byId("threshold-age").textContent = this.age;
    this.slider.setAttribute("aria-valuetext", `at least ${this.age} years`);
    for (const listener of this.#listeners) listener(this.age);
  }
}
