// The page: what the user does, and what happens then.

import { arrival, readFacts, unpack } from "./assets.js";
import { Camera } from "./camera.js";
import { EstimatorClient } from "./client.js";
import { announce, byId } from "./dom.js";
import { PhotoCard } from "./photoCard.js";
import { PHOTO_FACE_RATIO } from "./predictor.js";
import { resultButtons } from "./resultTable.js";
import { Threshold } from "./threshold.js";
import { uprightFile } from "./webp.js";
import { browserProblem, startProblem } from "./words.js";

const ARRIVAL_SHARE = 0.5; // of the bar at the start; the rest is for starting the networks

const { model: modelFacts, pieces, sampleName } = readFacts();
const model = { ...modelFacts, ageBins: agesBetween(modelFacts.age_min, modelFacts.age_max) };
const threshold = new Threshold(model.ageBins);
const cards = new Set();

takePhotos();
byId("results-actions").append(
  ...resultButtons(() => [...cards].flatMap(({ rows }) => rows), "results"));
const problem = browserProblem();
const started = problem ? Promise.reject(new Error(problem)) : start();
started.then(showReady, (error) => showBroken(problem || startProblem(error)));

/** Loads the networks; gives the client and the sample photo. */
async function start() {
  const packed = await arrival(pieces, (share) => showLoading(ARRIVAL_SHARE * share,
                                                              "Loading the networks"));
  const { sample, ...networks } = packed;
  const client = new EstimatorClient(byId("worker-code").textContent);
  showLoading(ARRIVAL_SHARE, "Starting the networks");
  await client.load(networks, model, (share) =>
    showLoading(ARRIVAL_SHARE + (1 - ARRIVAL_SHARE) * share, "Starting the networks"));
  return { client, sample };
}

function showLoading(share, words) {
  byId("loading-bar").value = share;
  byId("loading-news").textContent = `${words}: ${Math.round(100 * share)}%`;
}

function showReady({ client, sample }) {
  document.body.dataset.state = "ready";
  byId("loading-news").textContent = "Ready.";
  announce("The networks are loaded. The page is ready.");
  const camera = new Camera(client, model, (file) => addPhotos([file]));
  byId("use-camera").addEventListener("click", () => camera.start());
  byId("try-sample").addEventListener("click", async () => {
    addPhotos([new File([await unpack(sample)], sampleName, { type: "image/jpeg" })]);
  });
  for (const id of ["use-camera", "try-sample"]) byId(id).disabled = false;
}

function showBroken(words) {
  document.body.dataset.state = "broken";
  byId("loading-news").textContent = words;
  announce(words);
}

// ---- Photos in

/** By button, by dropping them anywhere on the page, and by pasting. */
function takePhotos() {
  const input = byId("photo-files");
  byId("choose-photos").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    addPhotos([...input.files]);
    input.value = ""; // the same photo may be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // without this the browser opens the file instead
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    takeFiles(event.dataTransfer, "Nothing was dropped that is a file. Save the picture first.");
  });
  document.addEventListener("paste", (event) => {
    takeFiles(event.clipboardData, "The clipboard holds no picture.");
  });
}

function takeFiles(transfer, words) {
  const files = [...(transfer?.files ?? [])];
  byId("intake-problem").textContent = files.length ? "" : words;
  addPhotos(files);
}

function addPhotos(files) {
  if (!files.length) return;
  byId("intake-problem").textContent = "";
  document.body.classList.add("has-photos");
  const minFaceRatio = byId("small-faces").checked ? 0 : PHOTO_FACE_RATIO;
  const added = files.map((file) => {
    const card = new PhotoCard(file, model.ageBins, () => removeCard(card));
    cards.add(card);
    estimate(card, file, minFaceRatio);
    return card.element;
  });
  byId("photos").prepend(...added);
}

function removeCard(card) {
  card.remove();
  cards.delete(card);
  document.body.classList.toggle("has-photos", cards.size > 0);
  byId("choose-photos").focus(); // the button that had it is gone
}

async function estimate(card, file, minFaceRatio) {
  try {
    const upright = await uprightFile(file);
    if (upright !== file) card.showPicture(upright);
    const { client } = await started;
    card.showProgress(0);
    const result = await client.photo(upright, minFaceRatio, (share) => card.showProgress(share));
    if (cards.has(card)) card.showResult(result, threshold); // it may have been taken away
  } catch (error) {
    card.showProblem(error);
  }
}

function agesBetween(first, last) {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}
