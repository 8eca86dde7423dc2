// Requests to the plugin's routes, relative to this file so that any path prefix works.

/** JSON of one route; an error carries the text that the server gave as the reason. */
async function get(route, query = {}) {
  const url = new URL(`../${route}`, import.meta.url);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  let response;
  try {
    response = await fetch(url, { cache: "no-store" });
  } catch (error) {
    throw new Error(`TensorBoard does not answer (${error.message}). Is it still running?`);
  }
  if (!response.ok) throw new Error(`${route}: ${(await response.text()).trim()}`);
  return response.json();
}

/** Everything that the page shows, except numerics: {runs, tables, default, problems}. */
export async function load() {
  const { runs, problems } = await get("runs");
  if (runs.length === 0) return { runs: [], tables: [], default: "", problems };
  const [priced, ...loaded] = await Promise.all([get("tables"), ...runs.map(loadRun)]);
  return {
    runs: loaded,
    tables: priced.tables,
    default: priced.default,
    targets: priced.targets,
    problems: [...new Set([...problems, ...priced.problems, ...loaded.flatMap((r) => r.problems)])],
  };
}

async function loadRun({ run, entries }) {
  const [counts, progress] = await Promise.all([get("counts", { run }), get("progress", { run })]);
  return {
    name: run,
    entries,
    counts: new Map(counts.counts.map((c) => [c.id, c])),
    points: progress.points,
    problems: [...counts.problems, ...progress.problems],
  };
}

/** Numerics of one step of a run, the last one without `step`. */
export const loadNumerics = (run, step) => get("numerics", step == null ? { run } : { run, step });
