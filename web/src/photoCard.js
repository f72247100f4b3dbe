// One photo on the page: its picture with marks, its faces and its table.

import { button, element } from "./dom.js";
import { drawFaces, scaled, sharpContext } from "./drawing.js";
import { faceList } from "./faceList.js";
import { resultButtons, resultTable } from "./resultTable.js";
import { resultRows } from "./results.js";
import { pictureBlob, saveFile, stem } from "./saving.js";
import { faceCount, noFaceWords, photoProblem, photoSentence } from "./words.js";

const BESIDE = 2; // faces have room beside the picture; more go below it

export class PhotoCard {
  /** Rows of results.js, and what they say in a sentence; none before there is a result. */
  rows = [];
  summary = "";
  #ageBins;
  #url;
  #cleanups = [];

  /**
   * @param file File or Blob of a photo.
   * @param name of the photo on the page and in the tables.
   * @param ageBins years.
   * @param onRemove called when the user takes the card away.
   */
  constructor(file, name, ageBins, onRemove) {
    this.file = file;
    this.name = name;
    this.#ageBins = ageBins;
    this.#url = URL.createObjectURL(file);
    this.image = element("img", { src: this.#url, alt: name });
    this.marks = element("canvas.marks", { aria: { hidden: "true" } });
    this.picture = element("div.picture", {}, this.image, this.marks);
    this.bar = element("progress", { max: 1, value: 0, aria: { label: `Work on ${name}` } });
    this.news = element("p.news", {}, "Waiting");
    this.side = element("div.side", {}, this.news, this.bar);
    this.facts = element("span.facts");
    this.element = element("article.photo", { aria: { label: name } },
      element("header", {}, element("h3", {}, name), this.facts,
              button("×", onRemove, { className: "remove", title: "Remove",
                                      aria: { label: `Remove ${name}` } })),
      element("div.photo-body", {}, this.picture, this.side));
    this.image.addEventListener("error", () => this.picture.remove(), { once: true });
  }

  /** Whether there is a result, or a problem. */
  get isDone() {
    return this.rows.length > 0;
  }

  /** Shows another file in the place of the photo's: the same picture, upright. */
  showPicture(file) {
    URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(file);
    this.image.src = this.#url;
  }

  /** Shows how much of the work is done, 0..1. */
  showProgress(share) {
    this.news.textContent = "Looking for faces…";
    this.bar.value = share;
  }

  /** Shows what was found: the result of client.js, and the Threshold. */
  showResult({ width, height, smallestFace, faces, crops, milliseconds }, threshold) {
    this.rows = resultRows(this.name, faces);
    this.facts.textContent = `${width} × ${height} pixels, `
      + `${faces.length ? faceCount(faces.length) : "no face"}, `
      + `${(milliseconds / 1000).toFixed(1)} s`;
    this.summary = photoSentence(this.name, faces);
    this.image.alt = this.summary;
    if (!faces.length) {
      this.#showNews(noFaceWords(smallestFace));
      return;
    }
    const { list, forget } = faceList(faces, crops, this.#ageBins, threshold);
    this.side.replaceChildren(list);
    this.element.classList.toggle("many", faces.length > BESIDE);
    this.#cleanups.push(forget);
    this.#keepMarked(width, faces);
    this.saveProblem = element("p.problem", { role: "alert" });
    this.element.append(
      element("div.actions", {},
        ...resultButtons(() => this.rows, stem(this.name)),
        button("Save picture", () => this.#savePicture(width, height, faces)),
        this.saveProblem),
      resultTable(this.rows, this.name));
  }

  /** Shows why there is no result. */
  showProblem(error) {
    const { status, words } = photoProblem(this.name, error);
    this.rows = resultRows(this.name, [], status);
    this.element.classList.add("failed");
    this.#showNews(words);
    this.summary = `${this.name}: ${words}`;
  }

  /** Takes the card off the page. */
  remove() {
    for (const cleanup of this.#cleanups) cleanup();
    URL.revokeObjectURL(this.#url);
    this.element.remove();
  }

  #showNews(words) {
    this.news.textContent = words;
    this.bar.remove();
  }

  /** Draws the marks anew whenever the picture's size on the screen changes. */
  #keepMarked(width, faces) {
    const observer = new ResizeObserver(() => this.#mark(width, faces));
    observer.observe(this.marks);
    this.#cleanups.push(() => observer.disconnect());
  }

  #mark(photoWidth, faces) {
    const size = [this.marks.clientWidth, this.marks.clientHeight];
    const context = sharpContext(this.marks, size);
    const scale = size[0] / photoWidth;
    drawFaces(context, size, faces.map((face) => scaled(face, scale)), this.#ageBins);
  }

  async #savePicture(width, height, faces) {
    const canvas = element("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.drawImage(this.image, 0, 0, width, height);
    drawFaces(context, [width, height], faces, this.#ageBins);
    try {
      const blob = await pictureBlob(canvas, "image/jpeg", 0.92);
      saveFile(`${stem(this.name)}_ages.jpg`, blob, "image/jpeg");
    } catch (error) {
      this.saveProblem.textContent = error.message;
    }
  }
}
