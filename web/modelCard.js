// What the page repeats from MODEL_CARD.md, read from it, so that it stands in one place.

const HEADING = "It must not be used";
const AGE_CHECK = "age check";
// The card is about the model in misc/. Of another one the page does not repeat what refers to
// its terms, nor the parts of a sentence that tell what it learned from or hold a number.
const OF_ITS_TERMS = "the terms below";
const OF_ITSELF = /\d|learned from/;
const NOT_MEASURED = "how often this model is wrong was not measured here";
// Two files that agree in these make the same errors.
const DECIDING = ["source_sha256", "temperature", "decode"];

/**
 * @param text of MODEL_CARD.md.
 * @param isShipped whether the page's model is the one of the card; of another one only what is
 *     true of any model is taken.
 * @returns { warnings, ageCheckWarning }: what the model must not be used for, sentences that go on
 *     after "It must not be used", and that of them which is about checks of age.
 */
export function modelWarnings(text, isShipped) {
  const [, after] = text.split(`\n${HEADING}\n`);
  const list = after?.trimStart().split("\n\n")[0] ?? "";
  const items = list.split(/^\* /m).slice(1)
    .map((item) => withoutEnd(item.replaceAll("*", "").replaceAll(/\s+/g, " ").trim()));
  if (!items.some(isAgeCheck)) {
    throw new Error(`MODEL_CARD.md has no list after "${HEADING}" with a line about an `
      + `"${AGE_CHECK}"; the page shows both`);
  }
  const warnings = isShipped ? items
    : items.filter((item) => !item.includes(OF_ITS_TERMS)).map(ofAnyModel);
  return { warnings, ageCheckWarning: warnings.find(isAgeCheck) };
}

function isAgeCheck(item) {
  return item.includes(AGE_CHECK);
}

function ofAnyModel(item) {
  const parts = item.split(/(?<=[.:]) /).filter((part) => !OF_ITSELF.test(part));
  const kept = withoutEnd(parts.join(" "));
  return isAgeCheck(item) ? `${kept}; ${NOT_MEASURED}` : kept;
}

function withoutEnd(text) {
  return text.replace(/[;.:]$/, "");
}

/** Whether the metadata of two ONNX files are those of one model. */
export function isSameModel(metadata, other) {
  return DECIDING.every((key) => metadata[key] === other[key]);
}
