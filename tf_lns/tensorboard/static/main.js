// Entry of the tab: loads the page, keeps its state, reloads.

import { load, loadNumerics } from "./api.js";
import { $, h } from "./dom.js";
import { priced } from "./pricing.js";
import { colours, sections } from "./views.js";

const SNIPPET = `import tf_lns

model.fit(
    x, y, epochs=5,
    callbacks=[tf_lns.EnergyCallback(log_dir="logs/my-run")],
)`;
const SECONDS = 30;

/** What a person has chosen; the tables and theme outlive the page. */
const state = {
  data: null,
  text: "",
  run: null,
  hidden: new Set(),
  table: recall("table"),
  metric: null,
  higher: null,
  axis: "step",
  per: "sample",
  runFilter: "",
  layerFilter: "",
  layer: null,
  numerics: new Map(),
  numericsStep: null,
};

function recall(name) {
  try {
    return localStorage.getItem(`lns_energy.${name}`);
  } catch {
    return null; // storage is off; nothing is remembered
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(`lns_energy.${name}`, value);
  } catch {
    // As above.
  }
}

/** Called by TensorBoard, whose document is empty, and by index.html itself. */
export async function render() {
  document.documentElement.lang = "en";
  document.head.append(h("link", { rel: "stylesheet", href: new URL("style.css", import.meta.url) }));
  theme(recall("theme"));
  if (!$("app")) {
    const response = await fetch(new URL("index.html", import.meta.url));
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    document.body.append(document.adoptNode(page.getElementById("app")));
  }
  $("snippet").textContent = SNIPPET;
  $("auto").checked = recall("auto") !== "off";
  listen();
  theme(recall("theme"));
  await reload();
  setInterval(() => {
    if ($("auto").checked && !document.hidden) void reload();
  }, 1000 * SECONDS);
}

let loading = null;

/** Fetches all data; draws anew only if something changed. One at a time. */
function reload() {
  loading ??= fetchAll().finally(() => {
    loading = null;
  });
  return loading;
}

async function fetchAll() {
  $("reload").disabled = true;
  $("status").textContent = "Loading …";
  try {
    const data = await load();
    const text = JSON.stringify(data, (_, value) => (value instanceof Map ? [...value] : value));
    $("error").hidden = true;
    if (text !== state.text) {
      state.text = text;
      state.numerics.clear();
      accept(data);
    }
    $("status").textContent = `Read at ${new Date().toLocaleTimeString("en-GB")}`;
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
    $("status").textContent = state.data ? "Shown: what was read before" : "";
    if (!state.data) $("app").dataset.state = "error";
  } finally {
    $("reload").disabled = false;
  }
}

/** Takes new data and keeps what is still there of the choices. */
function accept(data) {
  const shades = colours(data.runs.length);
  data.runs.forEach((run, index) => Object.assign(run, { index, colour: shades[index] }));
  state.data = data;
  const empty = data.runs.length === 0;
  $("empty").hidden = !empty;
  $("content").hidden = empty;
  $("app").dataset.state = empty ? "empty" : "ready";
  $("table").disabled = empty;
  if (empty) {
    $("table").replaceChildren();
    $("table-note").textContent = "";
    return;
  }
  if (!data.runs.some((run) => run.name === state.run)) {
    // The run a person most likely looks for: the one that got something last.
    const newest = (run) => run.points.at(-1)?.wall_time ?? 0;
    state.run = data.runs.reduce((a, b) => (newest(b) > newest(a) ? b : a)).name;
  }
  if (!data.tables.some((table) => table.name === state.table)) state.table = data.default;
  const metrics = metricsOf(data.runs);
  if (!metrics.includes(state.metric)) chooseMetric(metrics[0] ?? null);
  $("table").replaceChildren(...["built in", "of these runs"].map((group) => {
    const tables = data.tables.filter((table) => table.built_in === (group === "built in"));
    return tables.length ? h("optgroup", { label: group }, tables.map((table) =>
      h("option", { value: table.name, selected: table.name === state.table }, table.name))) : "";
  }));
  $("metric").replaceChildren(...metrics.map((metric) =>
    h("option", { value: metric, selected: metric === state.metric }, metric)));
  draw();
}

/** Names of metrics, accuracies of validation data first. */
function metricsOf(runs) {
  const names = new Set(runs.flatMap((run) => run.points.flatMap((p) => Object.keys(p.metrics))));
  const rank = (name) => (/acc/.test(name) ? 0 : 2) + (name.startsWith("val_") ? 0 : 1);
  return [...names].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

function chooseMetric(metric) {
  state.metric = metric;
  state.higher = !/loss|err|mse|mae|perplexity|divergence/i.test(metric ?? "");
  $("higher").checked = state.higher;
}

/** Draws everything, or the named sections only. */
function draw(...names) {
  if (!state.data?.runs.length) return;
  const { runs, tables } = state.data;
  const table = tables.find((t) => t.name === state.table);
  const run = runs.find((r) => r.name === state.run);
  const view = {
    state, data: state.data, run, table, runs, energy: priced(run, table), choose, draw,
    shown: runs.filter((r) => !state.hidden.has(r.name)),
    priced: (other) => priced(other, table),
  };
  for (const [name, section] of Object.entries(sections)) {
    if (names.length === 0 || names.includes(name)) section(view);
  }
  void numerics(view);
}

/** Numerics are read when they are looked at: they can be large. */
async function numerics(view) {
  const { run } = view;
  const wanted = `${run.name}\n${state.numericsStep ?? ""}`;
  if (!state.numerics.has(wanted)) {
    if (!run.entries.includes("numerics")) {
      state.numerics.set(wanted, { steps: [], step: null, tensors: [] });
    } else {
      try {
        state.numerics.set(wanted, await loadNumerics(run.name, state.numericsStep));
      } catch (error) {
        sections.numerics({ ...view, failed: error.message });
        return;
      }
    }
  }
  if (run.name === state.run) {
    sections.numerics({ ...view, numerics: state.numerics.get(wanted) });
  }
}

/** Changes choices and draws what depends on them. */
function choose(changes, ...names) {
  if ("run" in changes && changes.run !== state.run) {
    Object.assign(changes, { layer: null, numericsStep: null });
  }
  Object.assign(state, changes);
  draw(...names);
}

function listen() {
  const on = (id, event, listener) => $(id).addEventListener(event, listener);
  on("reload", "click", () => reload());
  on("auto", "change", () => remember("auto", $("auto").checked ? "on" : "off"));
  on("theme", "click", () => {
    const next = dark() ? "light" : "dark";
    remember("theme", next);
    theme(next);
  });
  on("table", "change", () => {
    remember("table", $("table").value);
    choose({ table: $("table").value });
  });
  on("metric", "change", () => {
    chooseMetric($("metric").value);
    draw("pareto", "compare");
  });
  on("higher", "change", () => choose({ higher: $("higher").checked }, "pareto"));
  on("x-axis", "change", () => choose({ axis: $("x-axis").value }, "trend"));
  on("per", "change", () => choose({ per: $("per").value }, "compare"));
  on("run-filter", "input", () => choose({ runFilter: $("run-filter").value }, "runs"));
  on("layer-filter", "input", () => choose({ layerFilter: $("layer-filter").value }, "layers"));
  on("numerics-step", "change", () =>
    choose({ numericsStep: Number($("numerics-step").value) }, "numerics"));
  on("copy", "click", async () => {
    try {
      await navigator.clipboard.writeText(SNIPPET);
      $("copy").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren($("snippet"));
      $("copy").textContent = "Selected";
    }
    setTimeout(() => ($("copy").textContent = "Copy"), 2000);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(recall("theme")));
}

const dark = () => document.documentElement.dataset.theme === "dark";

/** "dark" or "light"; the system's choice without either. Colours are CSS variables. */
function theme(choice) {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = choice ?? system;
  const button = $("theme");
  if (button) {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(dark()));
  }
}
