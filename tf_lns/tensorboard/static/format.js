// Numbers for people: three significant digits, SI prefixes, a thin space before the unit.

const PREFIXES = [
  [1e-18, "a"], [1e-15, "f"], [1e-12, "p"], [1e-9, "n"], [1e-6, "µ"], [1e-3, "m"],
  [1, ""], [1e3, "k"], [1e6, "M"], [1e9, "G"], [1e12, "T"], [1e15, "P"],
];
const THIN = "\u202f";

/** The prefix that leaves 1 to 999 in front of it: [factor, letter]. */
export function prefix(value) {
  const size = Math.abs(value);
  if (!(size > 0)) return [1, ""];
  // 0.9995 of a step already rounds to it.
  return PREFIXES.findLast(([factor]) => size >= 0.9995 * factor) ?? PREFIXES[0];
}

/** `value` to `n` significant digits, never in powers of ten. */
export function digits(value, n = 3) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(n));
  const places = Math.max(0, n - 1 - Math.floor(Math.log10(Math.abs(rounded))));
  return rounded.toLocaleString("en", {
    minimumFractionDigits: places, maximumFractionDigits: places, useGrouping: true,
  });
}

/** A quantity in parts: {number: "1.23", unit: "mJ"}. */
export function parts(value, unit, n = 3) {
  if (!Number.isFinite(value)) return { number: "–", unit: "" };
  const [factor, letter] = prefix(value);
  return { number: digits(value / factor, n), unit: letter + unit };
}

export function quantity(value, unit, n = 3) {
  const { number, unit: with_prefix } = parts(value, unit, n);
  return with_prefix ? number + THIN + with_prefix : number;
}

/** pJ as text: "1.23 mJ". */
export const joules = (pj, n) => quantity(pj * 1e-12, "J", n);
export const count = (n) => (n % 1 === 0 && Math.abs(n) < 10_000 ? whole(n) : quantity(n, ""));
export const whole = (n) => Math.round(n).toLocaleString("en");
export const bytes = (n) => quantity(n, "B");
export const percent = (share) =>
  share === 0 ? "0" + THIN + "%"
    : share < 0.0005 ? "<0.1" + THIN + "%"
      : (100 * share).toFixed(1) + THIN + "%";
export const ratio = (x) => (Number.isFinite(x) ? `${digits(x, Number(x.toPrecision(3)) < 1 ? 2 : 3)}×` : "–");

/** "1.02–1.31 mJ" where an estimate has a range, "" where three digits show none. */
export function range({ low, high }) {
  const [factor, letter] = prefix(high * 1e-12);
  const [from, to] = [low, high].map((pj) => digits((pj * 1e-12) / factor));
  return from === to ? "" : `${from}–${to}${THIN}${letter}J`;
}

/** Round numbers that divide low..high into about `n` parts. */
export function ticks(low, high, n = 5) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((x) => x >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const result = [];
  for (let i = first; i * step <= high + 1e-9 * span; i++) result.push(i * step + 0); // no -0
  return result;
}

/** 1, 2 and 5 times powers of ten, or the powers alone where those would be many. */
export function logTicks(low, high) {
  const result = [];
  const few = Math.log10(high / low) <= 2.5;
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const m of few ? [1, 2, 5] : [1]) {
      const value = m * 10 ** e;
      if (value >= low * 0.999 && value <= high * 1.001) result.push(value);
    }
  }
  return result;
}
