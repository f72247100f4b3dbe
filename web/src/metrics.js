// From a distribution over ages to numbers, as metrics.py has it.
//
// probs: K probabilities, sum 1. ageBins: K consecutive whole years.

export const INTERVAL_SHARE = 0.8; // of a distribution, within the interval that is shown of it

/** Expectation of the distribution in years. */
export function distributionMean(probs, ageBins) {
  return sum(probs, (prob, i) => prob * ageBins[i]);
}

/** Standard deviation of the distribution in years. */
export function distributionStd(probs, ageBins) {
  const mean = distributionMean(probs, ageBins);
  const squares = sum(probs, (prob, i) => prob * ageBins[i] ** 2);
  return Math.sqrt(Math.max(squares - mean ** 2, 0)); // rounding can leave it slightly below 0
}

/** Age at which the interpolated distribution reaches one half. */
export function distributionMedian(probs, ageBins) {
  return quantile(probs, ageBins, 0.5);
}

/** How the age is made of the distribution, by the name in the model's metadata. */
export const DECODES = { mean: distributionMean, median: distributionMedian };

/** Age in years at which the distribution reaches a level of 0..1, linear within each bin. */
export function quantile(probs, ageBins, level) {
  const wanted = level * sum(probs, (prob) => prob);
  let reached = 0; // at the lower edge of the bin
  for (let k = 0; k < probs.length; k++) {
    if (reached + probs[k] >= wanted || k === probs.length - 1) {
      const share = probs[k] > 0 ? (wanted - reached) / probs[k] : 0;
      return ageBins[k] - 0.5 + Math.min(Math.max(share, 0), 1);
    }
    reached += probs[k];
  }
  throw new Error("a distribution has at least one age");
}

/** [low, high]: ages between which the central share of the distribution lies, not rounded. */
export function centralInterval(probs, ageBins, share) {
  return [(1 - share) / 2, (1 + share) / 2].map((level) =>
    Math.min(Math.max(quantile(probs, ageBins, level), ageBins[0]), ageBins.at(-1)));
}

/** Predicted probability of being at least `threshold` years old, 0..1. */
export function probabilityOfAtLeast(probs, ageBins, threshold) {
  return Math.min(sum(probs, (prob, i) => (ageBins[i] >= threshold ? prob : 0)), 1);
}

function sum(values, term) {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += term(values[i], i);
  return total;
}
