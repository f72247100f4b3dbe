// The marks on a picture: box, age and interval, and the predicted distribution of every face, as
// media/drawing.py draws them.
//
// All sizes follow the picture and the face, in the canvas's own units. A place is
// { x, y, width, height }.

// One colour a face, light enough for dark text on it (Okabe and Ito's palette, brightened).
export const COLOURS = [[255, 200, 60], [95, 205, 255], [110, 225, 150], [255, 150, 190],
                        [255, 155, 95], [190, 170, 255]];
const INK = "rgb(18 20 26)";
const PANEL = "rgb(18 20 26 / 80%)";
export const MAX_COVERED = 0.1; // share of a panel that may cover other faces; else it is left out
const FONT = "system-ui, sans-serif";

/**
 * Marks the faces of a picture.
 *
 * @param context 2D context of a canvas, over the picture.
 * @param size [width, height] of the picture in the canvas's units.
 * @param faces of predictor.js, in the canvas's units (see scaled()).
 * @param ageBins years.
 * @param numbers one whole number a face, drawn before its age and choosing its colour; by default
 *     none is drawn and the faces are coloured in order.
 */
export function drawFaces(context, size, faces, ageBins, numbers = null) {
  const boxes = faces.map(placeOf);
  const textSizes = boxes.map((box) => textSize(box, size));
  const colours = faces.map((_, i) => faceColour(numbers ? numbers[i] : i));
  boxes.forEach((box, i) => {
    drawBox(context, box, Math.max(1, Math.round(textSizes[i] / 9)), colours[i]);
  });
  const taken = [];
  faces.forEach((face, i) => {
    const text = numbers ? `#${numbers[i]}  ${ageText(face)}` : ageText(face);
    const spots = labelSpots(boxes[i], labelSize(context, text, textSizes[i]));
    const spot = place(spots, size, taken);
    drawLabel(context, text, spot, textSizes[i], colours[i]);
    taken.push(spot);
  });
  faces.forEach((face, i) => {
    const others = [...boxes.filter((_, j) => j !== i), ...taken];
    const spots = panelSpots(boxes[i], panelSize(boxes[i], textSizes[i]), textSizes[i] / 3);
    const spot = place(spots, size, others, boxes[i]);
    const covered = others.reduce((sum, other) => sum + overlap(spot, other), 0);
    if (covered <= MAX_COVERED * spot.width * spot.height) {
      drawPanel(context, face, ageBins, spot, textSizes[i], colours[i]);
      taken.push(spot);
    }
  });
}

/** CSS colour of a face's marks. */
export function faceColour(number) {
  return `rgb(${COLOURS[number % COLOURS.length].join(" ")})`;
}

/** A face with its box in a picture of another scale. */
export function scaled(face, scale) {
  return { ...face, x1: face.x1 * scale, y1: face.y1 * scale, x2: face.x2 * scale,
           y2: face.y2 * scale };
}

/** Age and central 80% interval, "34, 29-40". */
export function ageText({ age, low, high }) {
  return `${age.toFixed()}, ${low.toFixed()}-${high.toFixed()}`;
}

/**
 * The first of some places, moved into the picture, that covers least of the obstacles.
 *
 * @param spots places, best first.
 * @param size [width, height] of the picture.
 * @param obstacles places to keep clear of.
 * @param ownBox place that counts half, or none.
 */
export function place(spots, [width, height], obstacles, ownBox = null) {
  const inside = spots.map((spot) => ({
    ...spot,
    x: Math.max(0, Math.min(Math.round(spot.x), width - spot.width)),
    y: Math.max(0, Math.min(Math.round(spot.y), height - spot.height)),
  }));
  const costs = inside.map((spot) =>
    obstacles.reduce((sum, other) => sum + overlap(spot, other), 0)
    + (ownBox ? 0.5 * overlap(spot, ownBox) : 0));
  return inside[costs.indexOf(Math.min(...costs))];
}

/** Round ages from first to last, at most `room` of them. */
export function ticks(first, last, room) {
  const step = [10, 20, 25, 50].find((size) => (last - first) / size + 1 <= room) ?? last - first;
  const ages = [];
  for (let age = first; age <= last; age += step) ages.push(age);
  return ages;
}

/** Points [age, probability] of the distribution between two ages, ends included. */
export function curveBetween(probs, ageBins, low, high) {
  const first = ageBins[0];
  const probabilityAt = (age) => {
    const before = Math.min(Math.floor(age - first), probs.length - 2);
    const share = age - first - before;
    return probs[before] * (1 - share) + probs[before + 1] * share;
  };
  const between = ageBins.filter((age) => age > low && age < high);
  return [low, ...between, high].map((age) => [age, probabilityAt(age)]);
}

/** 2D context of an empty canvas in the units of the page, with all pixels of the screen. */
export function sharpContext(canvas, [width, height]) {
  const pixels = window.devicePixelRatio;
  canvas.width = Math.round(width * pixels);
  canvas.height = Math.round(height * pixels);
  const context = canvas.getContext("2d");
  context.scale(pixels, pixels);
  return context;
}

function placeOf({ x1, y1, x2, y2 }) {
  return { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
}

function overlap(one, other) {
  const width = Math.min(one.x + one.width, other.x + other.width) - Math.max(one.x, other.x);
  const height = Math.min(one.y + one.height, other.y + other.height) - Math.max(one.y, other.y);
  return Math.max(width, 0) * Math.max(height, 0);
}

/** Grows with the face, within what is legible on the whole picture. */
function textSize(box, size) {
  const short = Math.min(...size);
  const wanted = box.height * 0.13;
  return Math.round(Math.min(Math.max(wanted, 10, short / 65), Math.max(11, short / 20)));
}

function labelSize(context, text, size) {
  context.font = `600 ${size}px ${FONT}`;
  return [Math.ceil(context.measureText(text).width + 0.8 * size), Math.round(1.4 * size)];
}

function panelSize(box, size) {
  const width = Math.round(Math.min(Math.max(box.width * 0.9, 6.5 * size), 11 * size));
  return [width, Math.round(width * 0.62)];
}

function labelSpots(box, [width, height]) {
  const middle = box.x + (box.width - width) / 2;
  const bottom = box.y + box.height;
  return [[middle, box.y - height], [middle, bottom], [box.x - width, box.y],
          [box.x + box.width, box.y], [middle, box.y], [middle, bottom - height]]
    .map(([x, y]) => ({ x, y, width, height }));
}

function panelSpots(box, [width, height], gap) {
  const middle = box.x + (box.width - width) / 2;
  const right = box.x + box.width;
  const bottom = box.y + box.height;
  return [[right + gap, box.y], [box.x - gap - width, box.y],
          [right + gap, bottom - height], [box.x - gap - width, bottom - height],
          [middle, bottom + gap], [middle, box.y - gap - height],
          [right - width, bottom - height], [box.x, bottom - height]]
    .map(([x, y]) => ({ x, y, width, height }));
}

/** A coloured line inside a thin dark one, visible on any background. */
function drawBox(context, { x, y, width, height }, lineWidth, colour) {
  const edge = Math.max(1, lineWidth / 3);
  context.lineJoin = "miter";
  for (const [style, wide] of [[INK, lineWidth + 2 * edge], [colour, lineWidth]]) {
    context.strokeStyle = style;
    context.lineWidth = wide;
    context.strokeRect(x + lineWidth / 2, y + lineWidth / 2, width - lineWidth,
                       height - lineWidth);
  }
}

/** Dark text on a rounded plate of the face's colour. */
function drawLabel(context, text, { x, y, width, height }, size, colour) {
  context.fillStyle = colour;
  fillRounded(context, x, y, width, height, size * 0.25);
  context.fillStyle = INK;
  context.font = `600 ${size}px ${FONT}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, x + width / 2, y + height / 2 + size * 0.05);
}

/** The distribution, its central interval bright, its age a white line. */
function drawPanel(context, face, ageBins, { x, y, width, height }, size, colour) {
  const fontSize = 0.65 * size;
  context.font = `${fontSize}px ${FONT}`;
  const digits = context.measureText("000").width;
  const pad = 0.4 * size;
  const side = 0.75 * digits;
  const base = y + height - pad - fontSize;
  const [first, last] = [ageBins[0], ageBins.at(-1)];
  const top = Math.max(...face.probs);
  const across = (age) => x + side + ((age - first) / (last - first)) * (width - 2 * side);
  const up = (prob) => base - (prob / top) * (base - y - pad);
  const line = Math.max(1, size / 14);

  context.fillStyle = PANEL;
  fillRounded(context, x, y, width, height, size * 0.25);
  for (const [low, high, opacity] of [[first, last, 0.43], [face.low, face.high, 1]]) {
    context.globalAlpha = opacity;
    context.fillStyle = colour;
    fillUnder(context, curveBetween(face.probs, ageBins, low, high)
      .map(([age, prob]) => [across(age), up(prob)]), base);
  }
  context.globalAlpha = 1;
  context.fillStyle = "rgb(255 255 255 / 63%)";
  context.fillRect(across(first), base - line / 2, across(last) - across(first), line);
  context.fillStyle = "white";
  context.fillRect(across(face.age) - line / 2, y + 0.6 * pad, line, base - y - 0.6 * pad);
  context.fillStyle = "rgb(255 255 255 / 86%)";
  context.textAlign = "center";
  context.textBaseline = "alphabetic";
  for (const age of ticks(first, last, width / (1.33 * digits))) {
    context.fillText(String(age), across(age), y + height - 0.8 * pad);
  }
}

function fillRounded(context, x, y, width, height, radius) {
  context.beginPath();
  context.roundRect(x, y, width, height, radius);
  context.fill();
}

function fillUnder(context, points, base) {
  context.beginPath();
  context.moveTo(points[0][0], base);
  for (const [x, y] of points) context.lineTo(x, y);
  context.lineTo(points.at(-1)[0], base);
  context.fill();
}
