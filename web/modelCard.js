// What the page repeats from MODEL_CARD.md, read from it, so that it stands in one place.

const HEADING = "It must not be used";
const AGE_CHECK = "age check";

/**
 * @param text of MODEL_CARD.md.
 * @returns { warnings, ageCheckWarning }: what the model must not be used for, sentences that go on
 *     after "It must not be used", and that of them which is about checks of age.
 */
export function modelWarnings(text) {
  const [, after] = text.split(`\n${HEADING}\n`);
  const list = after?.trimStart().split("\n\n")[0] ?? "";
  const warnings = list.split(/^\* /m).slice(1)
    .map((item) => item.replaceAll("*", "").replaceAll(/\s+/g, " ").trim().replace(/[;.]$/, ""));
  const ageCheckWarning = warnings.find((warning) => warning.includes(AGE_CHECK));
  if (!ageCheckWarning) {
    throw new Error(`MODEL_CARD.md has no list after "${HEADING}" with a line about an `
      + `"${AGE_CHECK}"; the page shows both`);
  }
  return { warnings, ageCheckWarning };
}
