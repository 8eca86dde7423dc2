// The sections of the page: each fills its part of index.html from a view, see draw in main.js.

import { bars, histogram, legend, lines, markIcon, scatter, stacks, treemap } from "./charts.js";
import { $, h, tip } from "./dom.js";
import { bytes, count, digits, joules, parts, percent, range, ratio, whole } from "./format.js";
import { csv, download, SortedTable } from "./table.js";

const PASSES = ["forward", "error", "gradient", "update", "other"];
const PASS_NAMES = Object.fromEntries(PASSES.map((p) => [p, p[0].toUpperCase() + p.slice(1)]));
const PASS_NOTES = {
  forward: "outputs from inputs and weights",
  error: "gradient with respect to inputs",
  gradient: "gradient with respect to weights",
  update: "optimizer",
  other: "loss and metrics",
};
const KINDS = {
  mac: "Multiply-accumulate", encode: "Encode", requantize: "Requantize", decode: "Decode",
  add: "Add", multiply: "Multiply", divide: "Divide", sqrt: "Square root",
  transcendental: "Exponential and the like", compare: "Compare and select", round: "Round",
  random: "Random draw",
};
const PART_NAMES = { mac: "Whole multiply-accumulate" };
const OUTSIDE = "(outside of layers)";

const passColour = (pass) => `var(--pass-${pass})`;

/** Colours of runs: eight that colour-blind people can tell apart, then again. */
export const colours = (n) => Array.from({ length: n }, (_, i) => `var(--run-${i % 8})`);

/** Rows of a tooltip for an energy, with its range where it has one. */
const energyRows = (energy, unit = "") => [
  [`Energy${unit}`, joules(energy.pj)],
  ...(range(energy) ? [["Low to high", range(energy)]] : []),
];

const share = (part, whole_) => (whole_ > 0 ? part / whole_ : 0);

/** Every section of energies says under which table it stands. */
function by({ table }) {
  const place = [table.node_nm ? `${table.node_nm} nm` : null, table.voltage_v ? `${table.voltage_v} V` : null];
  const text = [table.name, ...place.filter(Boolean)].join(", ");
  for (const line of document.querySelectorAll(".by")) {
    line.textContent = line.dataset.account === "memory"
      ? `Priced with ${text}. Each column as if all traffic went to that memory.`
      : `Priced with ${text}. Arithmetic only.`;
  }
  const { citation, doi, url } = table.source;
  $("table-note").replaceChildren(
    place.filter(Boolean).join(", "), place.some(Boolean) ? " · " : "", citation ?? "");
  $("table-note").title = [citation, doi, url].filter(Boolean).join("\n");
}

function runs(view) {
  const { state, choose } = view;
  const wanted = state.runFilter.toLowerCase();
  const listed = view.runs.filter((run) => run.name.toLowerCase().includes(wanted));
  const focused = document.activeElement?.dataset?.run;
  $("runs").replaceChildren(...listed.map((run) => {
    const shown = !state.hidden.has(run.name);
    const box = h("input", {
      type: "checkbox", "aria-label": `Compare ${run.name}`, on: {
        change: () => {
          const hidden = new Set(state.hidden);
          if (hidden.has(run.name)) hidden.delete(run.name);
          else hidden.add(run.name);
          choose({ hidden }, "trend", "pareto", "compare");
        },
      },
    });
    box.checked = shown;
    return h("li", { class: run.name === state.run ? "current" : null },
      box, markIcon(run),
      h("button", {
        type: "button", "data-run": run.name, title: run.name,
        "aria-current": run.name === state.run ? "true" : null,
        on: { click: () => choose({ run: run.name }) },
      }, h("span", { class: "run-name" }, run.name),
      h("span", { class: "run-energy" }, joules(view.priced(run).total.pj))));
  }));
  if (focused) $("runs").querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
}

function problems({ data, run, table, energy }) {
  const texts = [...data.problems];
  if (energy.differs !== null) {
    texts.push(`${run.name}: the callback priced this run at ${joules(energy.differs)} with `
      + `${table.name}; its counts give ${joules(energy.total.pj)} here. The table has changed.`);
  }
  $("problems").hidden = texts.length === 0;
  $("problems").replaceChildren(...texts.map((text) => h("li", null, text)));
}

/** One figure: its name, the number and its unit, its range. */
function tile(id, title, energy, note) {
  const { number, unit } = parts(energy.pj * 1e-12, "J");
  return h("div", { class: "tile", id, "data-joules": energy.pj * 1e-12 },
    h("div", { class: "tile-title" }, title),
    h("div", { class: "tile-value" }, number, h("span", { class: "unit" }, unit)),
    h("div", { class: "tile-note" }, range(energy) || "no range"),
    note ? h("div", { class: "tile-note" }, note) : null);
}

const TARGETS = { fp32: "FP32", bf16: "BF16", fp16: "FP16", fp8: "FP8", int8: "INT8", lns8: "LNS8" };

function tiles(view) {
  const { run, table, energy } = view;
  const counts = [...run.counts.values()][0];
  const { end } = energy;
  $("run-title").replaceChildren(markIcon(run), run.name);
  $("run-note").textContent = [
    counts?.name ? `Model ${counts.name}` : null,
    run.points.length
      ? `${whole(energy.steps)} steps, ${whole(energy.samples)} samples, ${whole(end.epoch)} epochs`
      : "counted, no step recorded yet: the figures are of one step",
    `table ${table.name}`,
  ].filter(Boolean).join(" · ");
  const validation = energy.validation.pj > 0
    ? `and ${joules(energy.validation.pj)} for validation` : null;
  $("tiles").replaceChildren(
    tile("tile-total", "Training", energy.total, validation),
    tile("tile-step", "Per step", energy.perStep),
    tile("tile-sample", "Per sample", energy.perSample),
    h("div", { class: "tile wide" },
      h("div", { class: "tile-title" }, "The same steps with products in another format, as a multiple"),
      h("div", { class: "ratios" }, Object.entries(energy.targets).map(([name, target]) => {
        const ok = !target.unpriced.some((key) => key.startsWith("mac ")) && energy.total.pj > 0;
        const factor = ok ? target.energy.pj / energy.total.pj : NaN;
        return tip(h("div", { class: "ratio", id: `ratio-${name}`, "data-ratio": factor },
          h("div", { class: "ratio-name" }, TARGETS[name] ?? name),
          h("div", { class: "ratio-value" }, ratio(factor)),
          h("div", { class: "tile-note" }, ok ? joules(target.energy.pj) : "no price")),
        () => [`${run.name} in ${TARGETS[name] ?? name}`, ok
          ? [...energyRows(target.energy), ["This run", joules(energy.total.pj)], ["Ratio", ratio(factor)],
            ["Table", table.name]]
          : [["Not priced", target.unpriced.join(", ")], ["Table", table.name]]]);
      }))));
  const names = [...new Set(energy.unpriced.map((gap) => gap.name))];
  $("gap").hidden = names.length === 0;
  $("gap").replaceChildren(
    `Not in these figures: ${names.slice(0, 4).join(", ")}${names.length > 4 ? ` and ${names.length - 4} more` : ""}. `,
    h("a", { href: "#unpriced-section", on: {
      click: (event) => {
        event.preventDefault();
        $("unpriced-section").scrollIntoView({ behavior: "smooth" });
      },
    } }, "What they are"));
}

function trend({ state, shown, priced }) {
  const series = shown.map((run) => ({
    name: run.name, colour: run.colour, index: run.index,
    points: [[0, 0], ...priced(run).series.map(({ point, energy }) =>
      [point[state.axis], energy.pj * 1e-12])],
  })).filter((line) => line.points.length > 1);
  if (series.length === 0) {
    $("trend").replaceChildren(nothing("No run with steps is ticked."));
    return;
  }
  const titles = { step: "steps", samples: "samples", epoch: "epochs" };
  lines($("trend"), {
    series, xTitle: titles[state.axis], yTitle: "Energy", yUnit: "J",
    xText: (x) => (x >= 1e5 ? count(x) : whole(x)), yText: (y) => joules(y * 1e12),
    label: `Energy over ${titles[state.axis]}: ${series.map((line) =>
      `${line.name} ${joules(line.points.at(-1)[1] * 1e12)}`).join(", ")}`,
  });
}

const nothing = (text) => h("p", { class: "nothing muted" }, text);

/** The last value of a metric and the energy up to there. */
function reached(run, metric, priced) {
  return priced(run).series.filter(({ point }) => Number.isFinite(point.metrics[metric])).at(-1);
}

function pareto({ state, shown, table, priced }) {
  const points = shown.flatMap((run) => {
    const end = reached(run, state.metric, priced);
    if (!end || !(end.energy.pj > 0)) return [];
    return [{
      name: run.name, colour: run.colour, index: run.index,
      x: end.energy.pj * 1e-12, low: end.energy.low * 1e-12, high: end.energy.high * 1e-12,
      y: end.point.metrics[state.metric],
      path: priced(run).series.filter(({ point }) => Number.isFinite(point.metrics[state.metric]))
        .map(({ point, energy }) => [energy.pj * 1e-12, point.metrics[state.metric]]),
      tip: () => [run.name, [[state.metric, digits(end.point.metrics[state.metric], 4)],
        ...energyRows(end.energy), ["Step", whole(end.point.step)], ["Table", table.name]]],
    }];
  });
  if (points.length === 0) {
    $("pareto").replaceChildren(nothing("No ticked run has a metric yet."));
    return;
  }
  const better = (a, b) => (state.higher ? a >= b : a <= b);
  for (const p of points) {
    p.best = !points.some((q) => q !== p && q.x <= p.x && better(q.y, p.y)
      && (q.x < p.x || q.y !== p.y));
  }
  scatter($("pareto"), {
    points, xTitle: "Energy of training", xUnit: "J", yTitle: state.metric, higher: state.higher,
    label: `${state.metric} against energy of ${points.length} runs`,
  });
}

const compared = lazyTable("compare", { caption: "Runs compared", sort: "total", ascending: true });

/** A table that is made when its place exists. */
function lazyTable(id, options) {
  let table = null;
  return () => (table ??= new SortedTable($(id), options));
}

function compare(view) {
  const { state, shown, table, priced } = view;
  if (shown.length === 0) {
    $("compare-bars").replaceChildren(nothing("No run is ticked."));
    $("compare").replaceChildren();
    return;
  }
  const divisor = { sample: (e) => e.samples / e.steps, step: () => 1, total: (e) => 1 / e.steps };
  const unit = { sample: " per sample", step: " per step", total: "" }[state.per];
  $("compare-bars").replaceChildren(
    legend(PASSES.map((name) => ({ name: PASS_NAMES[name], colour: passColour(name) }))),
    stacks(shown.map((run) => {
      const energy = priced(run);
      const scale = 1 / divisor[state.per](energy);
      const pieces = PASSES.map((pass) => ({
        name: PASS_NAMES[pass], colour: passColour(pass),
        value: (energy.passes.find((p) => p.name === pass)?.energy.pj ?? 0) * scale,
      }));
      const sum = energy.perStep.pj * scale;
      return {
        label: run.name, mark: markIcon(run), parts: pieces, text: joules(sum),
        tip: () => [`${run.name}, ${table.name}`, [
          ...pieces.map((p) => [p.name, `${joules(p.value)}  ${percent(share(p.value, sum))}`, p.colour]),
          [`All${unit}`, joules(sum)]]],
      };
    })));
  const fp32 = (run) => {
    const { targets, total } = priced(run);
    const target = targets.fp32;
    return !target || target.unpriced.some((key) => key.startsWith("mac ")) || !(total.pj > 0)
      ? null : target.energy.pj / total.pj;
  };
  const energyCell = (energy) => h("span", { title: range(energy) || null }, joules(energy.pj));
  compared().update([
    { id: "run", title: "Run", text: true, value: (r) => r.name,
      cell: (r) => h("span", { class: "with-mark" }, markIcon(r), r.name) },
    { id: "steps", title: "Steps", value: (r) => priced(r).steps, cell: (r) => whole(priced(r).steps) },
    { id: "total", title: "Training", value: (r) => priced(r).total.pj, cell: (r) => energyCell(priced(r).total) },
    { id: "range", title: "Low to high", value: (r) => priced(r).total.high, cell: (r) => range(priced(r).total) || "–" },
    { id: "step", title: "Per step", value: (r) => priced(r).perStep.pj, cell: (r) => energyCell(priced(r).perStep) },
    { id: "sample", title: "Per sample", value: (r) => priced(r).perSample.pj, cell: (r) => energyCell(priced(r).perSample) },
    { id: "fp32", title: "In FP32", note: "The same steps with products in FP32, as a multiple",
      value: fp32, cell: (r) => (fp32(r) === null ? "–" : ratio(fp32(r))) },
    ...(state.metric ? [{ id: "metric", title: state.metric,
      value: (r) => reached(r, state.metric, priced)?.point.metrics[state.metric] ?? null,
      cell: (r) => {
        const end = reached(r, state.metric, priced);
        return end ? digits(end.point.metrics[state.metric], 4) : "–";
      } }] : []),
  ], shown, { rowClass: (r) => (r.name === state.run ? "current" : "") });
}

/** Bars of groups of one mean step. */
function groupBars(view, groups, label, colour) {
  const { energy, table } = view;
  return bars(groups.filter((g) => g.energy.pj > 0).map((group) => ({
    label: label(group.name), colour: colour(group.name),
    value: group.energy.pj, low: group.energy.low, high: group.energy.high,
    text: joules(group.energy.pj), share: percent(share(group.energy.pj, energy.perStep.pj)),
    tip: () => [label(group.name), [...energyRows(group.energy, " per step"),
      ...(group.count ? [["Operations per step", count(group.count)]] : []),
      ...(group.rows ?? []), ["Table", table.name]]],
  })));
}

function details(view) {
  const { run, energy } = view;
  $("detail-title").replaceChildren("Where a step of ", h("b", null, run.name), " spends it");
  const passes = PASSES.map((name) => energy.passes.find((p) => p.name === name)).filter(Boolean)
    .map((group) => ({ ...group, rows: [["What", PASS_NOTES[group.name]]] }));
  $("passes").replaceChildren(groupBars(view, passes, (name) => PASS_NAMES[name], passColour));
  const kinds = [...energy.kinds].sort((a, b) => b.energy.pj - a.energy.pj).map((group) => {
    const keys = energy.keys.filter((k) => k.name.split(" ")[0] === group.name && k.energy.pj > 0);
    return { ...group, rows: keys.map((k) =>
      [k.name.split(" ").slice(1).join(" × "), `${count(k.count)} at ${joules(k.energy.pj / k.count)}`]) };
  });
  $("kinds").replaceChildren(
    groupBars(view, kinds, (name) => KINDS[name] ?? name, () => "var(--bar)"));
  const pieces = [...energy.parts].sort((a, b) => b.energy.pj - a.energy.pj);
  $("parts").replaceChildren(
    groupBars(view, pieces, (name) => PART_NAMES[name] ?? name[0].toUpperCase() + name.slice(1), () => "var(--bar)"));
}

const layerTable = lazyTable("layers", { caption: "Energy of one step by layer", sort: "energy" });

function layers(view) {
  const { energy, state, run, table, choose } = view;
  const all = energy.perStep.pj;
  const name = (layer) => layer.layer || OUTSIDE;
  $("treemap-legend").replaceChildren(
    legend(PASSES.filter((pass) => energy.passes.some((p) => p.name === pass && p.energy.pj > 0))
      .map((pass) => ({ name: PASS_NAMES[pass], colour: passColour(pass) }))));
  const items = energy.layers.filter((layer) => layer.energy.pj > 0).map((layer) => ({
    path: layer.layer, name: layer.layer ? layer.layer.split("/").at(-1) : OUTSIDE,
    value: layer.energy.pj, text: joules(layer.energy.pj),
    parts: PASSES.map((pass) => ({
      name: pass, value: layer.passes[pass]?.pj ?? 0, colour: passColour(pass),
    })),
    tip: () => [name(layer), [...energyRows(layer.energy, " per step"),
      ["Share", percent(share(layer.energy.pj, all))],
      ...PASSES.filter((pass) => layer.passes[pass]?.pj).map((pass) =>
        [PASS_NAMES[pass], joules(layer.passes[pass].pj), passColour(pass)]),
      ["Table", table.name]]],
  }));
  if (items.length) {
    treemap($("treemap"), {
      layers: items, label: `Energy of ${items.length} layers`,
      choose: (path) => choose({ layer: path === state.layer ? null : path }, "layers"),
    });
  } else {
    $("treemap").replaceChildren(nothing("Nothing here has a price in this table."));
  }
  const wanted = state.layerFilter.toLowerCase();
  const rows = energy.layers.filter((layer) => name(layer).toLowerCase().includes(wanted));
  const used = PASSES.filter((pass) => energy.passes.some((p) => p.name === pass));
  const largest = Math.max(...energy.layers.map((layer) => layer.energy.pj), 1e-300);
  layerTable().update([
    { id: "layer", title: "Layer", text: true, value: name,
      cell: (l) => h("span", { class: "path", title: name(l) }, name(l)) },
    { id: "formats", title: "Operands", text: true, value: (l) => [...l.formats].sort().join(", "),
      cell: (l) => {
        const text = [...l.formats].sort().join(", ") || "–";
        return h("span", { class: "path narrow", title: text }, text);
      } },
    { id: "macs", title: "MACs", value: (l) => l.macs, cell: (l) => (l.macs ? count(l.macs) : "–") },
    ...used.map((pass) => ({
      id: `${pass}_pj`, title: PASS_NAMES[pass], value: (l) => l.passes[pass]?.pj ?? 0,
      cell: (l) => (l.passes[pass]?.pj ? joules(l.passes[pass].pj) : "–"),
    })),
    { id: "energy", title: "Per step", value: (l) => l.energy.pj,
      cell: (l) => h("span", { class: "inline-bar", title: range(l.energy) || null },
        h("i", { style: { width: `${(28 * l.energy.pj) / largest}px` } }), joules(l.energy.pj)) },
    { id: "low_pj", title: "Low", value: (l) => l.energy.low, seen: false },
    { id: "high_pj", title: "High", value: (l) => l.energy.high, seen: false },
    { id: "share", title: "Share", value: (l) => share(l.energy.pj, all),
      cell: (l) => percent(share(l.energy.pj, all)) },
  ], rows, {
    rowClass: (l) => (state.layer !== null && l.layer === state.layer ? "current" : ""),
    footer: wanted ? null : {
      layer: "All layers", energy: joules(all),
      macs: count(energy.layers.reduce((n, l) => n + l.macs, 0)),
      ...Object.fromEntries(used.map((pass) =>
        [`${pass}_pj`, joules(energy.passes.find((p) => p.name === pass).energy.pj)])),
    },
  });
  if (state.layer !== null) {
    const row = $("layers").querySelector("tr.current");
    const box = $("layers");
    if (row) box.scrollTop = row.offsetTop - box.clientHeight / 2;
  }
  const records = () => layerTable().records.map(({ energy: energy_pj, ...rest }) =>
    ({ run: run.name, table: table.name, ...rest, energy_pj }));
  $("layers-csv").onclick = () =>
    download(`energy-${run.name}-${table.name}.csv`, "text/csv", csv(records()));
  $("layers-json").onclick = () => download(
    `energy-${run.name}-${table.name}.json`, "application/json",
    JSON.stringify({
      run: run.name, table: table.name, source: table.source, unit: "pJ per step",
      per_step: energy.perStep, unpriced: energy.unpriced, layers: records(),
    }, null, 2));
}

const power = (exponent) => ["2", h("sup", null, digits(exponent, 3).replace("-", "−"))];

const numericsTable = lazyTable("numerics", { caption: "Numerics by tensor", sort: "underflowed" });
let opened = null;

function numerics({ numerics: found, failed, draw }) {
  if (!found && !failed) return; // drawn when it has been read
  if (failed || found.tensors.length === 0) {
    $("numerics-field").hidden = true;
    $("numerics").replaceChildren(nothing(failed
      ?? "This run has no numerics. The callback writes those of tensors in LNS, at an interval "
        + "that it is given."));
    return;
  }
  $("numerics-field").hidden = false;
  $("numerics-step").replaceChildren(...found.steps.map((step) =>
    h("option", { value: step, selected: step === found.step }, whole(step))));
  const bar = (value) => h("span", { class: "inline-bar" },
    h("i", { style: { width: `${60 * value}px` } }), percent(value));
  const place = h("div", { class: "scroll tall" });
  const detail = h("div", { class: "tensor" });
  const show = (t) => {
    opened = t.tensor;
    detail.replaceChildren(
      h("div", null, h("strong", null, t.tensor),
        h("p", { class: "muted" }, `${t.role} in ${t.format}, ${count(t.elements)} values; `
          + (t.smallest === null ? "its range is not known" : "its range shaded: "),
          t.smallest === null ? null : [power(t.smallest), " to ", power(t.largest)]),
        h("dl", { class: "facts" },
          [["Saturated", t.saturated], ["Underflowed", t.underflowed], ["Zero", t.zero]].map(([n, v]) =>
            [h("dt", null, n), h("dd", null, percent(v))]))),
      histogram(t, 420, 130, true));
  };
  numericsTable().container = place;
  numericsTable().update([
    { id: "layer", title: "Layer", text: true, value: (t) => t.layer,
      cell: (t) => h("button", { type: "button", class: "link", on: { click: () => {
        show(t);
        for (const row of place.querySelectorAll("tbody tr")) row.classList.remove("current");
        place.querySelector(`[data-tensor="${CSS.escape(t.tensor)}"]`)?.closest("tr").classList.add("current");
      } }, "data-tensor": t.tensor }, t.layer || OUTSIDE) },
    { id: "role", title: "Tensor", text: true, value: (t) => t.role },
    { id: "format", title: "Format", text: true, value: (t) => t.format },
    { id: "saturated", title: "Saturated", value: (t) => t.saturated, cell: (t) => bar(t.saturated) },
    { id: "underflowed", title: "Underflowed", value: (t) => t.underflowed, cell: (t) => bar(t.underflowed) },
    { id: "zero", title: "Zero", value: (t) => t.zero, cell: (t) => bar(t.zero) },
    { id: "histogram", title: "Magnitudes", note: "Sorted by the exponent of the largest",
      value: (t) => t.first + t.counts.length, cell: (t) => histogram(t, 120, 22, false) },
  ], found.tensors, { rowClass: (t) => (t.tensor === opened ? "current" : "") });
  show(found.tensors.find((t) => t.tensor === opened) ?? numericsTable().sorted[0]);
  $("numerics").replaceChildren(detail, place);
}

function memory({ energy, table }) {
  if (energy.traffic.length === 0) {
    $("memory").replaceChildren(nothing("No traffic was counted."));
    return;
  }
  const levels = table.memory.map((level) => level.level);
  const sum = (of) => energy.traffic.reduce((n, role) => n + of(role), 0);
  memoryTable().update([
    { id: "role", title: "What", text: true, value: (r) => r.role },
    { id: "read", title: "Read", value: (r) => r.read, cell: (r) => bytes(r.read) },
    { id: "write", title: "Written", value: (r) => r.write, cell: (r) => bytes(r.write) },
    ...levels.map((level) => ({
      id: level, title: `all in ${level}`, value: (r) => r.levels[level].pj,
      cell: (r) => h("span", { title: range(r.levels[level]) || null }, joules(r.levels[level].pj)),
    })),
  ], energy.traffic, { footer: {
    role: "Per step", read: bytes(sum((r) => r.read)), write: bytes(sum((r) => r.write)),
    ...Object.fromEntries(levels.map((level) => [level, joules(sum((r) => r.levels[level].pj))])),
  } });
}

const memoryTable = lazyTable("memory", { caption: "Memory traffic of one step", sort: "read" });

/** A link, for addresses of the web only. */
function link(address, text) {
  return /^https?:\/\//.test(address)
    ? h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, text) : text;
}

function source({ table, energy }) {
  const { citation, year, doi, url, read } = table.source;
  const facts = [
    ["Table", table.title === table.name ? table.name : `${table.title} (${table.name})`],
    ["Source", citation],
    ["Year", year],
    ["Process node", table.node_nm ? `${table.node_nm} nm` : "not known"],
    ["Voltage", table.voltage_v ? `${table.voltage_v} V` : "not known"],
    ["DOI", doi ? link(`https://doi.org/${doi}`, doi) : null],
    ["Address", url ? link(url, url) : null],
    ["Read", read],
    ["Written by", table.built_in ? "tf_lns, built in" : table.runs.join(", ")],
  ].filter(([, value]) => value);
  const operations = h("div", { class: "scroll tall" });
  const rows = h("div", { class: "scroll tall" });
  new SortedTable(operations, { caption: "Prices of operations", sort: "energy" }).update([
    { id: "kind", title: "Operation", text: true, value: (k) => KINDS[k.name.split(" ")[0]] ?? k.name },
    { id: "formats", title: "Formats", text: true, value: (k) => k.name.split(" ").slice(1).join(" × ") },
    { id: "count", title: "Per step", value: (k) => k.count, cell: (k) => count(k.count) },
    { id: "price", title: "Each", value: (k) => table.prices[k.name]?.pj ?? null,
      cell: (k) => (table.prices[k.name] ? joules(table.prices[k.name].pj) : "no price") },
    { id: "range", title: "Low to high", value: (k) => table.prices[k.name]?.high ?? null,
      cell: (k) => (table.prices[k.name] ? range(table.prices[k.name]) || "–" : "–") },
    { id: "energy", title: "Energy per step", value: (k) => k.energy.pj, cell: (k) => joules(k.energy.pj) },
    { id: "parts", title: "Made of", text: true,
      value: (k) => table.prices[k.name]?.parts.map((p) => p.text).join("; ")
        ?? `lacks ${table.missing[k.name]?.join(", ")}`,
      cell: (k) => table.prices[k.name]?.parts.map((p) => h("div", null, p.text))
        ?? `lacks ${table.missing[k.name]?.join(", ")}` },
  ], energy.keys);
  const triple = (row, name) => row[name].some((x) => x > 0);
  const formula = (row) => ["pj", "pj_per_bit", "pj_per_bit_squared"].filter((n) => triple(row, n))
    .map((n) => digits(row[n][1], 3) + { pj: "", pj_per_bit: " b", pj_per_bit_squared: " b²" }[n])
    .join(" + ") || "0";
  const limits = (row) => {
    const name = ["pj", "pj_per_bit", "pj_per_bit_squared"].find((n) => row[n][0] !== row[n][2]);
    return name ? `${digits(row[name][0], 3)}–${digits(row[name][2], 3)}` : "–";
  };
  new SortedTable(rows, { caption: "Rows of the table", sort: "op", ascending: true }).update([
    { id: "op", title: "Row", text: true, value: (r) => r.op },
    { id: "what", title: "Of", text: true,
      value: (r) => r.format || r.level || `every ${r.family} of b bits` },
    { id: "pj", title: "pJ", value: (r) => r.pj[1], cell: formula },
    { id: "range", title: "Low to high", value: (r) => r.pj[2], cell: limits },
    { id: "origin", title: "Origin", text: true, value: (r) => r.origin,
      cell: (r) => h("span", { class: `origin ${r.origin}` }, r.origin) },
    { id: "rule", title: "How", text: true, value: (r) => r.rule, cell: (r) => r.rule || "–" },
  ], table.rows);
  $("source").replaceChildren(
    h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
    table.notes.length ? h("ul", { class: "prose" }, table.notes.map((note) => h("li", null, note))) : "",
    h("h4", null, "What the operations of this run cost"), operations,
    h("details", null, h("summary", null, `All ${table.rows.length} rows of the table`), rows));
}

const unpricedTable = lazyTable("unpriced", {
  caption: "Operations without a price", sort: "count",
});

function unpriced({ energy, run, table }) {
  if (energy.unpriced.length === 0) {
    $("unpriced").replaceChildren(nothing("Every operation that was counted has a price."));
  } else {
    unpricedTable().update([
      { id: "name", title: "Operation", text: true, value: (gap) => gap.name },
      { id: "count", title: "Per step", value: (gap) => gap.count, cell: (gap) => count(gap.count) },
      { id: "elements", title: "Values", value: (gap) => gap.elements ?? null,
        cell: (gap) => (gap.elements ? count(gap.elements) : "–") },
      { id: "why", title: "Why", text: true, value: (gap) => (table.missing[gap.name]
        ? `${table.name} has no ${table.missing[gap.name].join(", ")}` : gap.why) },
      { id: "layers", title: "Where", text: true, value: (gap) => gap.layers?.join(", ") || null },
    ], energy.unpriced);
  }
  const notes = [...new Set([...run.counts.values()].flatMap((counts) => counts.notes))];
  $("notes").replaceChildren(...(notes.length
    ? [h("h4", null, "Assumed while counting"),
      h("ul", { class: "prose" }, notes.map((note) => h("li", null, note)))] : []));
}

export const sections = {
  by, runs, problems, tiles, trend, pareto, compare, details, layers, numerics, memory, source,
  unpriced,
};
