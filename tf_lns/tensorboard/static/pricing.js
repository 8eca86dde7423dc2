// Counts times prices: the only place where the page computes an energy.
//
// A row is {layer, pass, kind, key, count, ...}; table.prices[key] is {pj, low, high}, or null
// where the table has no price. Energies are {pj, low, high} in picojoules.

const zero = () => ({ pj: 0, low: 0, high: 0 });

function add(sum, price, count) {
  sum.pj += price.pj * count;
  sum.low += price.low * count;
  sum.high += price.high * count;
  return sum;
}

/** Energy of rows, each counted `weight` times; what has no price adds nothing. */
export function energy(rows, table, weight = 1, sum = zero()) {
  for (const { key, count } of rows) {
    const price = table.prices[key];
    if (price) add(sum, price, count * weight);
  }
  return sum;
}

export const scaled = ({ pj, low, high }, factor) => ({
  pj: pj * factor, low: low * factor, high: high * factor,
});

/** How often each counted step was executed: [[counts, times], ...]; once each if unknown. */
function executed(run, steps) {
  return Object.entries(steps)
    .filter(([id, times]) => run.counts.has(id) && times > 0)
    .map(([id, times]) => [run.counts.get(id), times]);
}

/** What is known of a run at its last entry; a run that was only counted stands for one step. */
function last(run) {
  if (run.points.length) return run.points.at(-1);
  const first = [...run.counts.values()][0];
  return {
    step: 1, epoch: 0, samples: first?.samples ?? 1, metrics: {}, val_steps: {}, joules: {},
    steps: first ? { [first.id]: 1 } : {},
  };
}

/** Adds energies and counts of rows per value of by(row). */
function grouped(work, table, by) {
  const groups = new Map();
  for (const [{ rows }, times] of work) {
    for (const row of rows) {
      const name = by(row);
      if (!groups.has(name)) groups.set(name, { name, energy: zero(), count: 0, priced: true });
      const group = groups.get(name);
      group.count += row.count * times;
      const price = table.prices[row.key];
      if (price) add(group.energy, price, row.count * times);
      else group.priced = false;
    }
  }
  return groups;
}

/** The same per value of by(row), for one mean step. */
function perStep(work, table, steps, by) {
  return [...grouped(work, table, by).values()].map((group) => ({
    ...group, energy: scaled(group.energy, 1 / steps), count: group.count / steps,
  }));
}

/** Energies of one mean step by part of the datapath: what the prices themselves are made of. */
function partsOf(work, table, steps) {
  const parts = new Map();
  for (const { name: key, count } of grouped(work, table, (row) => row.key).values()) {
    for (const part of table.prices[key]?.parts ?? []) {
      if (!parts.has(part.name)) parts.set(part.name, { name: part.name, energy: zero() });
      add(parts.get(part.name).energy, part, count / steps);
    }
  }
  return [...parts.values()];
}

/** Layers of one mean step with energies by pass, MACs and formats. */
function layersOf(work, table, steps) {
  const layers = new Map();
  for (const [{ rows }, times] of work) {
    for (const row of rows) {
      if (!layers.has(row.layer)) {
        layers.set(row.layer, {
          layer: row.layer, energy: zero(), passes: {}, macs: 0, formats: new Set(),
          unpriced: new Set(),
        });
      }
      const layer = layers.get(row.layer);
      const share = (row.count * times) / steps;
      if (row.kind === "mac") {
        layer.macs += share;
        layer.formats.add(row.formats.join(" × "));
      }
      const price = table.prices[row.key];
      if (!price) {
        layer.unpriced.add(row.key);
        continue;
      }
      add(layer.energy, price, share);
      add((layer.passes[row.pass] ??= zero()), price, share);
    }
  }
  return [...layers.values()];
}

const cache = new WeakMap();

/**
 * Everything that the page shows of one run under one table.
 * @returns {{steps, samples, total, perStep, perSample, validation, passes, kinds, keys, parts,
 *   layers, targets, series, unpriced, traffic, differs}}
 */
export function priced(run, table) {
  if (!cache.has(run)) cache.set(run, new Map());
  const known = cache.get(run);
  if (!known.has(table)) known.set(table, compute(run, table));
  return known.get(table);
}

function compute(run, table) {
  const end = last(run);
  const work = executed(run, end.steps);
  const steps = work.reduce((n, [, times]) => n + times, 0) || 1;
  const samples = end.samples || 1;
  const per_step = new Map(
    [...run.counts].map(([id, counts]) => [id, energy(counts.rows, table)]));
  const sum = (times) => Object.entries(times).reduce(
    (total, [id, n]) => (per_step.has(id) ? add(total, per_step.get(id), n) : total), zero());

  const total = sum(end.steps);
  const targets = {};
  for (const name of Object.keys(work[0]?.[0].targets ?? {})) {
    targets[name] = { energy: zero(), unpriced: [] };
    for (const [counts, times] of work) {
      const rows = counts.targets[name];
      if (!rows) continue;
      energy(rows, table, times, targets[name].energy);
      targets[name].unpriced.push(...rows.filter((r) => !table.prices[r.key]).map((r) => r.key));
    }
  }
  const stored = end.joules?.[table.name];
  return {
    steps, samples, total, end,
    perStep: scaled(total, 1 / steps),
    perSample: scaled(total, 1 / samples),
    validation: sum(end.val_steps ?? {}),
    passes: perStep(work, table, steps, (row) => row.pass),
    kinds: perStep(work, table, steps, (row) => row.kind),
    keys: perStep(work, table, steps, (row) => row.key),
    parts: partsOf(work, table, steps),
    layers: layersOf(work, table, steps),
    targets,
    series: run.points.map((point) => ({ point, energy: sum(point.steps) })),
    unpriced: missing(work, table, steps),
    traffic: trafficOf(work, table, steps),
    // The callback's own total, where it is not what the counts give here.
    differs: stored !== undefined && Math.abs(stored * 1e12 - total.pj) > 1e-6 * total.pj
      ? stored * 1e12 : null,
  };
}

/** Operations without a price: of kinds the table lacks, and unknown to the counter. */
function missing(work, table, steps) {
  const found = [...grouped(work, table, (row) => row.key).values()]
    .filter((group) => !group.priced)
    .map(({ name, count }) => ({ name, count: count / steps, why: "no price in this table" }));
  const unknown = new Map();
  for (const [counts, times] of work) {
    for (const { op, count, elements, layers } of counts.unpriced) {
      if (!unknown.has(op)) {
        unknown.set(op, {
          name: op, count: 0, elements: 0, layers, why: "not known to the counter",
        });
      }
      unknown.get(op).count += (count * times) / steps;
      unknown.get(op).elements += (elements * times) / steps;
    }
  }
  return [...unknown.values(), ...found];
}

/** Bytes between memory and arithmetic of one mean step, by role. */
function trafficOf(work, table, steps) {
  const roles = new Map();
  for (const [{ traffic }, times] of work) {
    for (const { role, direction, bits, elements } of traffic) {
      if (!roles.has(role)) roles.set(role, { role, read: 0, write: 0 });
      roles.get(role)[direction] += (elements * bits * times) / 8 / steps;
    }
  }
  return [...roles.values()].map((role) => ({
    ...role,
    levels: Object.fromEntries(table.memory.map((level) => [level.level,
      ["read", "write"].reduce(
        (sum, way) => (level[way] ? add(sum, level[way], role[way]) : sum), zero())])),
  }));
}
