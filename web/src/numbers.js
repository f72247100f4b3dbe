// Rounding as Python does it: the lists that training reads, and the tables, are rounded this way.

/**
 * Python's `round(value, decimals)`: exact, and a tie goes to the even digit.
 *
 * @param value number.
 * @param decimals digits after the point, 0 to 15.
 */
export function roundHalfEven(value, decimals = 0) {
  // Only a whole number of these steps can lie exactly between two results. All of it is exact.
  const step = 2 ** (decimals + 1);
  const doubled = 2 * 10 ** decimals * value;
  if (Number.isInteger(step * value) && Math.abs(doubled % 2) === 1) {
    return (2 * Math.round(doubled / 4)) / 10 ** decimals;
  }
  return Number(value.toFixed(decimals));
}
