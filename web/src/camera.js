// The camera's picture with the ages of its faces.
//
// The picture runs at its own speed; the faces of one frame are looked for at a time, and the marks
// are those of the latest frame that is done.

import { announce, byId, element } from "./dom.js";
import { drawFaces, scaled, sharpContext } from "./drawing.js";
import { STREAM_FACE_RATIO } from "./predictor.js";
import { pictureBlob } from "./saving.js";
import { FaceTracker } from "./tracking.js";
import { CAMERA_ENDED, NO_CAMERA_HERE, ageSentence, cameraProblem } from "./words.js";

const FRAME_SIZE = { width: { ideal: 640 }, height: { ideal: 480 } };
const RATE_FRAMES = 10; // over which the rate is averaged
const ANNOUNCED_EVERY_MS = 5000; // a screen reader gets no more than that

export class Camera {
  #client;
  #model;
  #stream = null;
  #attempt = 0; // to start; an answer to an earlier one comes too late

  /**
   * @param client EstimatorClient.
   * @param model the age network's facts.
   * @param onPhoto called with a File when the user keeps a frame.
   * @param onProblem called with a sentence when a frame cannot be kept.
   */
  constructor(client, model, onPhoto, onProblem) {
    this.#client = client;
    this.#model = model;
    this.section = byId("camera");
    this.video = byId("camera-video");
    this.marks = byId("camera-marks");
    this.news = byId("camera-news");
    this.choice = byId("camera-choice");
    byId("camera-stop").addEventListener("click", () => this.#close());
    byId("camera-keep").addEventListener("click", () =>
      this.#frameFile().then(onPhoto, ({ message }) => onProblem(message)));
    this.choice.addEventListener("change", () => this.start(this.choice.value));
  }

  /** Starts, or changes to another camera. */
  async start(deviceId = null) {
    this.stop();
    this.section.hidden = false;
    this.section.classList.remove("failed");
    this.#say("Waiting for the camera. The browser may ask whether this page may use it.");
    if (!navigator.mediaDevices?.getUserMedia) {
      this.#fail(NO_CAMERA_HERE);
      return;
    }
    const attempt = this.#attempt;
    try {
      const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "user" };
      const video = { ...FRAME_SIZE, ...which };
      const stream = await navigator.mediaDevices.getUserMedia({ video });
      if (attempt === this.#attempt) await this.#run(stream);
      else stopTracks(stream);
    } catch (error) {
      if (attempt === this.#attempt) this.#fail(cameraProblem(error));
    }
  }

  stop() {
    this.#attempt++;
    stopTracks(this.#stream);
    this.#stream = null;
    this.video.srcObject = null;
    this.section.hidden = true;
    this.#showLive(false);
  }

  #close() {
    this.stop();
    byId("use-camera").focus({ preventScroll: true }); // the button that had it is hidden
  }

  async #run(stream) {
    this.#stream = stream;
    const [track] = stream.getVideoTracks();
    const { facingMode, deviceId } = track.getSettings();
    track.addEventListener("ended", () => this.#stream === stream && this.#fail(CAMERA_ENDED));
    this.video.srcObject = stream;
    await this.video.play();
    await this.#listCameras(deviceId);
    if (this.#stream !== stream) return; // closed meanwhile
    // Everybody knows their own face from mirrors; a camera that looks away is not mirrored.
    const isMirrored = facingMode !== "environment";
    this.#showLive(true);
    this.section.classList.toggle("mirrored", isMirrored);
    this.section.scrollIntoView({ block: "nearest" });
    this.#say("Looking for faces…");
    await this.#follow(stream, isMirrored);
  }

  /** One frame after the other, as fast as faces are found, until the camera is closed. */
  async #follow(stream, isMirrored) {
    const tracker = new FaceTracker(this.#model);
    const rate = new FrameRate();
    let announced = 0;
    for (;;) {
      await nextFrame(this.video);
      const bitmap = await createImageBitmap(this.video);
      const { width, faces } = await this.#client.frame(bitmap, STREAM_FACE_RATIO);
      if (this.#stream !== stream) return;
      const tracked = tracker.update(faces);
      this.#mark(tracked, width, isMirrored);
      this.#say(`${facesText(tracked)} (${rate.tick().toFixed(1)} frames/s)`);
      if (performance.now() - announced > ANNOUNCED_EVERY_MS) {
        announced = performance.now();
        announce(facesText(tracked));
      }
    }
  }

  #mark(tracked, width, isMirrored) {
    const size = [this.marks.clientWidth, this.marks.clientHeight];
    const scale = size[0] / width;
    const faces = tracked.map(({ face }) => {
      const shown = isMirrored ? { ...face, x1: width - face.x2, x2: width - face.x1 } : face;
      return scaled(shown, scale);
    });
    drawFaces(sharpContext(this.marks, size), size, faces, this.#model.ageBins,
              tracked.map(({ number }) => number));
  }

  async #listCameras(current) {
    const devices = await navigator.mediaDevices.enumerateDevices();
    const cameras = devices.filter(({ kind }) => kind === "videoinput");
    this.choice.replaceChildren(...cameras.map(({ deviceId, label }, i) =>
      element("option", { value: deviceId, selected: deviceId === current },
              label || `Camera ${i + 1}`)));
    this.choice.hidden = cameras.length < 2;
  }

  async #frameFile() {
    const canvas = element("canvas", { width: this.video.videoWidth,
                                       height: this.video.videoHeight });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const blob = await pictureBlob(canvas, "image/png");
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
    return new File([blob], `camera_${time}.png`, { type: "image/png" });
  }

  #showLive(isLive) {
    this.section.classList.toggle("live", isLive);
    document.body.classList.toggle("has-camera", isLive);
  }

  #say(text) {
    this.news.textContent = text;
  }

  #fail(words) {
    this.stop();
    this.section.hidden = false;
    this.section.classList.add("failed");
    this.#say(words);
    announce(words);
  }
}

function stopTracks(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function facesText(tracked) {
  if (!tracked.length) return "No face is seen.";
  return tracked.map(({ number, face }) => `#${number}: ${ageSentence(face)}`).join("; ");
}

/** Resolves when the video shows a new frame. */
function nextFrame(video) {
  return new Promise((resolve) => {
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(resolve);
    else requestAnimationFrame(resolve);
  });
}

/** Frames a second over the latest ones. */
class FrameRate {
  #times = [];

  tick() {
    this.#times.push(performance.now());
    if (this.#times.length > RATE_FRAMES + 1) this.#times.shift();
    const seconds = (this.#times.at(-1) - this.#times[0]) / 1000;
    return seconds ? (this.#times.length - 1) / seconds : 0;
  }
}
