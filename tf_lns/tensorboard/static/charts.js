// Charts as SVG or plain elements; each takes plain data and knows nothing of runs or tables.

import { h, hideTip, responsive, s, showTip, tip } from "./dom.js";
import { digits, logTicks, prefix, ticks } from "./format.js";

/**
 * Horizontal bars, as elements so that their text wraps and can be selected.
 * @param {Array<{label, value, low, high, text, range, share, colour, tip}>} rows
 */
export function bars(rows) {
  const largest = Math.max(...rows.map((row) => row.high ?? row.value), 1e-300);
  return h("div", { class: "bars" }, rows.map((row) => {
    const at = (value) => `${(100 * value) / largest}%`;
    const spread = row.high - row.low > 0.01 * largest; // a narrower one cannot be seen
    const track = h("div", { class: "track" },
      h("div", { class: "fill", style: { width: at(row.value), background: row.colour } }),
      spread ? h("div", {
        class: "whisker", style: { left: at(row.low), width: at(row.high - row.low) },
      }) : null);
    return tip(h("div", { class: "bar-row" },
      h("div", { class: "bar-label" }, row.label),
      h("div", { class: "bar-value" }, row.text),
      h("div", { class: "bar-share" }, row.share),
      track), row.tip);
  }));
}

/** Bars of several parts on one scale: rows of {label, parts: [{name, value, colour}], text}. */
export function stacks(rows) {
  const largest = Math.max(...rows.map((r) => r.parts.reduce((n, p) => n + p.value, 0)), 1e-300);
  return h("div", { class: "bars stacks" }, rows.map((row) =>
    tip(h("div", { class: "bar-row" },
      h("div", { class: "bar-label" }, row.mark ?? null, row.label),
      h("div", { class: "track" }, row.parts.filter((p) => p.value > 0).map((part) =>
        h("div", {
          class: "fill",
          style: { width: `${(100 * part.value) / largest}%`, background: part.colour },
        }))),
      h("div", { class: "bar-value" }, row.text)), row.tip)));
}

/** Names and colours: [{name, colour}]. */
export function legend(entries) {
  return h("ul", { class: "legend" }, entries.map(({ name, colour }) =>
    h("li", null, h("i", { class: "dot", style: { background: colour } }), name)));
}

const MARGIN = { top: 12, right: 18, bottom: 40, left: 58 };

/** A linear or logarithmic scale from data to pixels, with its ticks. */
function scale([low, high], [from, to], log, n) {
  const of = log ? Math.log : (x) => x;
  const span = of(high) - of(low) || 1;
  const at = (x) => from + ((of(x) - of(low)) / span) * (to - from);
  return { at, ticks: log ? logTicks(low, high) : ticks(low, high, n), low, high };
}

/** Grid lines, tick texts and titles of both axes. */
function axes(x, y, box, titles, texts) {
  const { left, right, top, bottom } = box;
  return s("g", { class: "axes" },
    y.ticks.map((value) => [
      s("line", { class: "grid", x1: left, x2: right, y1: y.at(value), y2: y.at(value) }),
      s("text", { x: left - 8, y: y.at(value), dy: "0.32em", "text-anchor": "end" }, texts.y(value)),
    ]),
    s("line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom }),
    x.ticks.map((value) => [
      s("line", { class: "base", x1: x.at(value), x2: x.at(value), y1: bottom, y2: bottom + 4 }),
      s("text", { x: x.at(value), y: bottom + 17, "text-anchor": "middle" }, texts.x(value)),
    ]),
    s("text", { class: "axis-title", x: right, y: bottom + 34, "text-anchor": "end" }, titles.x),
    s("text", { class: "axis-title", x: left - MARGIN.left + 2, y: top - 14 }, titles.y));
}

/** Text of a tick, all of one axis with the same prefix. */
function tickText(high, step) {
  const [factor] = prefix(high);
  const places = Math.max(0, -Math.floor(Math.log10(step / factor) + 1e-9));
  const fits = (n) => Math.abs(Number((step / factor).toFixed(n)) - step / factor) < 1e-9;
  const shown = fits(places) ? places : places + 1;
  return (value) => (value / factor).toLocaleString("en", {
    minimumFractionDigits: shown, maximumFractionDigits: shown,
  });
}

const MARKS = [
  (r) => `M${-r},0A${r},${r} 0 1 0 ${r},0A${r},${r} 0 1 0 ${-r},0Z`,
  (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0,${-1.3 * r}L${1.25 * r},${r}H${-1.25 * r}Z`,
  (r) => `M0,${-1.4 * r}L${1.4 * r},0L0,${1.4 * r}L${-1.4 * r},0Z`,
  (r) => `M0,${1.3 * r}L${1.25 * r},${-r}H${-1.25 * r}Z`,
];

/** Outline of a marker; runs differ in shape as well as in colour. */
export const mark = (index, r = 4.5) => MARKS[index % MARKS.length](r);

/** A small marker for lists. */
export function markIcon({ colour, index }) {
  return s("svg", { class: "mark", viewBox: "-7 -7 14 14", width: 14, height: 14, "aria-hidden": "true" },
    s("path", { d: mark(index), fill: colour }));
}

/** Moves labels apart that would overlap; each {y}, in place. */
function spread(labels, gap, low, high) {
  labels.sort((a, b) => a.y - b.y);
  for (let i = 1; i < labels.length; i++) {
    labels[i].y = Math.max(labels[i].y, labels[i - 1].y + gap);
  }
  for (let i = labels.length - 1; i >= 0; i--) {
    const limit = i === labels.length - 1 ? high : labels[i + 1].y - gap;
    labels[i].y = Math.max(low, Math.min(labels[i].y, limit));
  }
}

const clip = (text, n) => (text.length > n ? `${text.slice(0, n - 1)}…` : text);

/**
 * Lines over steps with a reading line under the pointer, moved by arrow keys as well.
 * @param {Element} container
 * @param {{series: Array<{name, colour, index, points: Array<[x, y]>}>, xTitle, yTitle, yUnit,
 *   xText, yText, label}} data
 */
export function lines(container, data) {
  responsive(container, (width) => drawLines(width, data));
}

function drawLines(width, { series, xTitle, yTitle, yUnit, xText, yText, label }) {
  const height = 290;
  const names = Math.min(150, Math.max(60, ...series.map((l) => 7.2 * Math.min(l.name.length, 20) + 22)));
  const box = {
    left: MARGIN.left, right: width - names, top: MARGIN.top + 16, bottom: height - MARGIN.bottom,
  };
  const points = series.flatMap((line) => line.points);
  const largest = [0, 1].map((i) => Math.max(...points.map((p) => p[i]), 0) || 1);
  const x = scale([0, largest[0]], [box.left, box.right], false, Math.max(2, width / 130));
  const y = scale([0, largest[1] * 1.04], [box.bottom, box.top], false, 5);
  const step = (y.ticks[1] ?? 1) - (y.ticks[0] ?? 0);
  const [, letter] = prefix(largest[1]);
  const path = (line) => `M${line.points.map(([a, b]) => `${x.at(a).toFixed(1)},${y.at(b).toFixed(1)}`).join("L")}`;
  const labels = series.map((line) => {
    const [px, py] = line.points.at(-1);
    return { line, x: x.at(px), y: y.at(py), end: y.at(py) };
  });
  spread(labels, 15, box.top, box.bottom);
  const reading = s("g", { class: "reading", visibility: "hidden" },
    s("line", { y1: box.top, y2: box.bottom }));
  const svg = s("svg", {
    width, height, class: "chart", role: "img", tabindex: 0, "aria-label": label,
  },
  axes(x, y, box, { x: xTitle, y: `${yTitle}, ${letter}${yUnit}` }, {
    x: (v) => xText(v), y: tickText(largest[1], step),
  }),
  series.map((line) => s("path", { class: "line", d: path(line), stroke: line.colour })),
  labels.map(({ line, x: px, y: py, end }) => s("g", null,
    s("path", { d: mark(line.index, 4), fill: line.colour, transform: `translate(${px},${end})` }),
    s("text", { class: "name", x: box.right + 12, y: py, dy: "0.32em" }, clip(line.name, 20)))),
  reading);

  const stops = [...new Set(points.map((p) => p[0]))].sort((a, b) => a - b);
  let current = stops.length - 1;
  const read = (event) => {
    const at = stops[current];
    reading.setAttribute("visibility", "visible");
    reading.firstChild.setAttribute("x1", x.at(at));
    reading.firstChild.setAttribute("x2", x.at(at));
    const rows = series.map((line) => {
      const known = line.points.filter((p) => p[0] <= at).at(-1);
      return known ? [line.name, yText(known[1]), line.colour] : null;
    }).filter(Boolean);
    const frame = svg.getBoundingClientRect();
    showTip(event?.clientX ?? frame.left + x.at(at), event?.clientY ?? frame.top + 60,
      `${xText(at)} ${xTitle}`, rows);
  };
  const done = () => {
    reading.setAttribute("visibility", "hidden");
    hideTip();
  };
  svg.addEventListener("pointermove", (event) => {
    const px = event.clientX - svg.getBoundingClientRect().left;
    const distance = (i) => Math.abs(x.at(stops[i]) - px);
    current = stops.reduce((best, _, i) => (distance(i) < distance(best) ? i : best), 0);
    read(event);
  });
  svg.addEventListener("pointerleave", done);
  svg.addEventListener("blur", done);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    current = Math.min(stops.length - 1, Math.max(0, current + move));
    read();
  });
  return svg;
}

/**
 * Points of all runs and the frontier: nothing else is both cheaper and better.
 * @param {Element} container
 * @param {{points: Array<{name, colour, index, x, y, low, high, path, best, tip}>, xTitle, xUnit,
 *   yTitle, higher, label}} data
 */
export function scatter(container, data) {
  responsive(container, (width) => drawScatter(width, data));
}

function drawScatter(width, { points, xTitle, xUnit, yTitle, higher, label }) {
  const height = 290;
  const box = {
    left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top + 16,
    bottom: height - MARGIN.bottom,
  };
  const xs = points.flatMap((p) => [p.x, p.low, p.high]).filter((v) => v > 0);
  const [least, most] = [Math.min(...xs), Math.max(...xs)];
  const log = most / least > 6;
  const xDomain = log ? [least / 1.5, most * 1.6] : [0, most * 1.12];
  const ys = points.map((p) => p.y);
  const [bottom, top] = [Math.min(...ys), Math.max(...ys)];
  const margin = (top - bottom || Math.abs(top) || 1) * 0.18;
  const x = scale(xDomain, [box.left, box.right], log, Math.max(2, width / 110));
  const y = scale([bottom - margin, top + margin], [box.bottom, box.top], false, 5);
  const step = y.ticks.length > 1 ? y.ticks[1] - y.ticks[0] : margin;
  const places = Math.min(6, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (digits(step, 2).includes("25") ? 1 : 0)));
  const [factor, letter] = prefix(most);
  const inside = ([px, py]) => px >= xDomain[0] && py >= y.low && py <= y.high;
  const front = points.filter((p) => p.best).sort((a, b) => a.x - b.x);
  const steps = front.map((p, i) => {
    const before = front[i - 1];
    return before ? `H${x.at(p.x)}V${y.at(p.y)}` : `M${x.at(p.x)},${y.at(p.y)}`;
  }).join("");
  const labels = points.map((p) => ({ p, x: x.at(p.x), y: y.at(p.y) }));
  return s("svg", { width, height, class: "chart", role: "group", "aria-label": label },
    axes(x, y, box, {
      x: `${xTitle}, ${letter}${xUnit}${log ? ", logarithmic" : ""}`,
      y: `${yTitle} (${higher ? "higher" : "lower"} is better)`,
    }, {
      x: (v) => digits(v / factor, 2).replace(/\.0+$/, ""), y: (v) => v.toFixed(places),
    }),
    front.length > 1 ? s("path", { class: "front", d: steps }) : null,
    points.map((p) => s("path", {
      class: "trail", stroke: p.colour,
      d: p.path.filter(inside).map((q, i) => `${i ? "L" : "M"}${x.at(q[0])},${y.at(q[1])}`).join(""),
    })),
    points.map((p) => (p.high - p.low > 1e-9 * p.high ? s("line", {
      class: "error", stroke: p.colour, x1: x.at(Math.max(p.low, xDomain[0])), x2: x.at(p.high),
      y1: y.at(p.y), y2: y.at(p.y),
    }) : null)),
    labels.map(({ p, x: px, y: py }) => {
      const left = px > box.right - 8.2 * Math.min(p.name.length, 22) - 12;
      return tip(s("g", { class: "point" },
        s("path", { class: "hit", d: mark(0, 12), transform: `translate(${px},${py})` }),
        s("path", {
          d: mark(p.index, 5.5), transform: `translate(${px},${py})`, stroke: p.colour,
          class: p.best ? "solid" : "hollow", fill: p.best ? p.colour : null,
        }),
        s("text", {
          class: "name", x: px + (left ? -11 : 11), y: py - 9,
          "text-anchor": left ? "end" : "start",
        }, clip(p.name, 22))), p.tip);
    }));
}

/** Rectangles of areas in proportion, as square as can be: fills each item's `box`. */
function squarify(items, { x, y, width, height }) {
  const rest = items.filter((item) => item.value > 0).sort((a, b) => b.value - a.value);
  let sum = rest.reduce((n, item) => n + item.value, 0);
  let box = { x, y, width, height };
  while (rest.length && box.width > 0 && box.height > 0) {
    const area = (box.width * box.height) / sum;
    const side = Math.min(box.width, box.height);
    const worst = (row, total) => {
      const thick = (total * area) / side;
      return Math.max(...row.map((item) => {
        const along = (item.value * area) / thick;
        return Math.max(along / thick, thick / along);
      }));
    };
    const row = [rest.shift()];
    let total = row[0].value;
    while (rest.length
      && worst([...row, rest[0]], total + rest[0].value) <= worst(row, total)) {
      total += rest[0].value;
      row.push(rest.shift());
    }
    const thick = (total * area) / side;
    let offset = 0;
    for (const item of row) {
      const along = (item.value * area) / thick;
      item.box = box.width >= box.height
        ? { x: box.x, y: box.y + offset, width: thick, height: along }
        : { x: box.x + offset, y: box.y, width: along, height: thick };
      offset += along;
    }
    box = box.width >= box.height
      ? { ...box, x: box.x + thick, width: box.width - thick }
      : { ...box, y: box.y + thick, height: box.height - thick };
    sum -= total;
  }
}

/** Layers by their paths: a tree of {name, path, value, children, layer}. */
function tree(layers) {
  const root = { name: "", path: "", value: 0, children: new Map() };
  for (const layer of layers) {
    let node = root;
    node.value += layer.value;
    const names = layer.path ? layer.path.split("/") : [layer.name];
    names.forEach((name, depth) => {
      if (!node.children.has(name)) {
        node.children.set(name, {
          name, path: names.slice(0, depth + 1).join("/"), value: 0, children: new Map(),
        });
      }
      node = node.children.get(name);
      node.value += layer.value;
    });
    // A layer that has operations of its own and layers inside.
    node.own = layer;
  }
  return root;
}

/**
 * A rectangle per layer, nested as the layers are; a strip at its foot shows the passes.
 * @param {Element} container
 * @param {{layers: Array<{path, name, value, parts: [{name, value, colour}], text, tip}>, label,
 *   choose: (path) => void}} data
 */
export function treemap(container, data) {
  responsive(container, (width) => drawTreemap(width, data));
}

function drawTreemap(width, { layers, label, choose }) {
  const height = Math.max(220, Math.min(420, width * 0.42));
  const svg = s("svg", { width, height, class: "chart treemap", role: "group", "aria-label": label });
  const place = (node, box, depth) => {
    const inner = [...node.children.values()];
    if (inner.length === 0) {
      svg.append(leaf(node.own, box, choose));
      return;
    }
    let room = box;
    if (depth > 0 && inner.length + (node.own ? 1 : 0) > 1 && box.width > 56 && box.height > 44) {
      svg.append(
        s("rect", { class: "group", x: box.x, y: box.y, width: box.width, height: box.height }),
        s("text", { class: "group-name", x: box.x + 6, y: box.y + 13 },
          clip(node.name, Math.floor(box.width / 6.6))));
      room = { x: box.x + 3, y: box.y + 18, width: box.width - 6, height: box.height - 21 };
    }
    const items = inner.map((child) => ({ node: child, value: child.value }));
    if (node.own) {
      items.push({ node: { own: node.own, children: new Map() }, value: node.own.value });
    }
    squarify(items, room);
    for (const item of items) if (item.box) place(item.node, item.box, depth + 1);
  };
  place(tree(layers), { x: 0, y: 0, width, height }, 0);
  return svg;
}

function leaf(layer, box, choose) {
  const gap = Math.min(1, box.width / 4, box.height / 4);
  const [x, y] = [box.x + gap, box.y + gap];
  const [width, height] = [box.width - 2 * gap, box.height - 2 * gap];
  const strip = Math.min(9, height / 2);
  let offset = 0;
  const parts = layer.parts.filter((part) => part.value > 0).map((part) => {
    const along = (part.value / layer.value) * width;
    const rect = s("rect", {
      fill: part.colour, x: x + offset, y: y + height - strip, width: along, height: strip,
    });
    offset += along;
    return rect;
  });
  const room = Math.floor((width - 10) / 7);
  const texts = [];
  if (room >= 4 && height > 30) {
    texts.push(s("text", { class: "leaf-name", x: x + 6, y: y + 16 }, clip(layer.name, room)));
    if (height > 48 && room >= layer.text.length) {
      texts.push(s("text", { class: "leaf-text", x: x + 6, y: y + 32 }, layer.text));
    }
  }
  const group = tip(s("g", { class: "leaf", role: "button" },
    s("rect", { class: "area", x, y, width, height }), parts, texts), layer.tip);
  const pick = () => choose(layer.path);
  group.addEventListener("click", pick);
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pick();
    }
  });
  return group;
}

/**
 * Histogram over exponents with the range of the format behind it.
 * @param {{first, counts, smallest, largest, zero, elements}} tensor
 */
export function histogram(tensor, width, height, detailed) {
  const { first, counts, smallest, largest } = tensor;
  const limits = [smallest, largest].filter((v) => v !== null);
  const low = Math.floor(Math.min(first, ...limits)) - 1;
  const high = Math.ceil(Math.max(first + counts.length, ...limits)) + 1;
  const bottom = detailed ? height - 20 : height - 1;
  const x = (e) => ((e - low) / (high - low)) * width;
  const most = Math.max(...counts, 1);
  return s("svg", { width, height, class: "chart histogram", "aria-hidden": "true" },
    limits.length === 2 ? s("rect", {
      class: "range", x: x(smallest), width: Math.max(1, x(largest) - x(smallest)),
      y: 0, height: bottom,
    }) : null,
    counts.map((n, i) => (n > 0 ? s("rect", {
      class: limits.length === 2 && (first + i + 1 <= smallest || first + i > largest)
        ? "bin outside" : "bin",
      x: x(first + i) + 0.5, width: Math.max(0.5, x(1) - x(0) - 1),
      y: bottom - Math.max(1, (n / most) * (bottom - 2)), height: Math.max(1, (n / most) * (bottom - 2)),
    }) : null)),
    s("line", { class: "base", x1: 0, x2: width, y1: bottom + 0.5, y2: bottom + 0.5 }),
    detailed ? ticks(low, high, Math.max(3, width / 70)).filter((e) => e % 1 === 0).map((e) =>
      s("text", { x: x(e), y: height - 4, "text-anchor": "middle" }, `2${superscript(e)}`)) : null);
}

const superscript = (n) => String(n).replace(/[-0-9]/g, (c) =>
  (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)]));
