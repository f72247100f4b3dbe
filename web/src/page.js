// The page: what the user does, and what happens then.

import { arrival, readFacts, unpack } from "./assets.js";
import { Camera } from "./camera.js";
import { EstimatorClient } from "./client.js";
import { announce, byId } from "./dom.js";
import { filesOf } from "./folders.js";
import { PhotoList } from "./photoList.js";
import { PHOTO_FACE_RATIO } from "./predictor.js";
import { Threshold } from "./threshold.js";
import { browserProblem, startProblem } from "./words.js";

const ARRIVAL_SHARE = 0.5; // of the bar at the start; the rest is for starting the networks

const { model: modelFacts, pieces, sampleName } = readFacts();
const model = { ...modelFacts, ageBins: agesBetween(modelFacts.age_min, modelFacts.age_max) };
const problem = browserProblem();
const started = problem ? Promise.reject(new Error(problem)) : start();
const photoList = new PhotoList(started, model.ageBins, new Threshold(model.ageBins));

takePhotos();
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
  const camera = new Camera(client, model, (file) => addPhotos([named(file)]), showIntakeProblem);
  byId("use-camera").addEventListener("click", () => camera.start());
  byId("try-sample").addEventListener("click", async () => {
    addPhotos([{ file: new Blob([await unpack(sample)], { type: "image/jpeg" }),
                 name: sampleName }]);
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
    addPhotos([...input.files].map(named));
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

/** Takes what was dropped or pasted; words say what to do if there is no file in it. */
async function takeFiles(transfer, words) {
  const { photos, problems } = await filesOf(transfer);
  addPhotos(photos);
  if (!photos.length && !problems.length) problems.push(words);
  showIntakeProblem(problems.join(" "));
}

/** Adds files, each { file, name }. */
function addPhotos(photos) {
  showIntakeProblem("");
  photoList.add(photos, byId("small-faces").checked ? 0 : PHOTO_FACE_RATIO);
}

function showIntakeProblem(words) {
  byId("intake-problem").textContent = words;
}

function named(file) {
  return { file, name: file.name };
}

function agesBetween(first, last) {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}
