"""From event files to plain data for the page, without HTTP.

Counts go to the page as they were written, prices beside them: the page multiplies and adds,
and knows no recipe. What the same step would be in another format comes from here as well.
"""

from __future__ import annotations

import collections
import functools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from tensorboard.data import provider

from tf_lns.energy import events
from tf_lns.energy.comparison import FORMATS, retarget
from tf_lns.energy.counts import Tally
from tf_lns.energy.price import unit_price
from tf_lns.energy.records import Record
from tf_lns.energy.table import EnergyTable, Row, tables

TARGETS = FORMATS[::-1]
"""Formats in which every run is shown besides its own, see `compare.retarget`."""

_SAMPLES = 1000
"""Entries per tag that are asked for; TensorBoard keeps fewer unless told otherwise."""


_REQUIRED = {
    "counts": ("id", "tally"),
    "table": ("table",),
    "progress": ("step", "epoch", "steps", "samples", "metrics"),
    "numerics": ("step", "tensors"),
}
"""What each kind of entry must hold."""


class RequestError(ValueError):
    """A request that cannot be answered as it was put."""


class NotFoundError(RequestError):
    """A request for a run or step that does not exist."""


def key(kind: str, formats: Iterable[str]) -> str:
    """Name of a kind of operation on formats, under which the page finds its price.

    >>> key("mac", ("lns8:8", "lns8:8"))
    'mac lns8:8 lns8:8'
    """
    return " ".join((kind, *formats))


class EnergyData:
    """Reads the entries that `EnergyWriter` wrote.

    Args:
        data_provider: TensorBoard's access to the event files.
        samples: How many entries per tag to read, None for `_SAMPLES`.
    """

    def __init__(self, data_provider: provider.DataProvider, samples: int | None = None):
        self._provider = data_provider
        self._samples = samples or _SAMPLES

    def runs(self, ctx: Any, experiment: str) -> dict[str, Any]:
        """Runs with an energy account, in the order of their names."""
        runs = []
        problems: list[str] = []
        for run, tags in sorted(self._tags(ctx, experiment, None, problems).items()):
            runs.append({"run": run, "entries": sorted(set(tags.values()))})
        return {"runs": runs, "problems": problems}

    def counts(self, ctx: Any, experiment: str, run: str) -> dict[str, Any]:
        """Counts of every step signature of one run, also in other formats.

        Raises:
            NotFoundError: No such run.
        """
        problems: list[str] = []
        counts = list(self._counts(ctx, experiment, run, problems).values())
        return {"run": run, "counts": counts, "problems": problems}

    def progress(self, ctx: Any, experiment: str, run: str) -> dict[str, Any]:
        """Counters of one run, in the order of the steps.

        Raises:
            NotFoundError: No such run.
        """
        problems: list[str] = []
        # After a restart a step can be there twice: the later one stands.
        points = {p["step"]: p for p in self._read(ctx, experiment, run, "progress", problems)}
        return {"run": run, "points": [points[s] for s in sorted(points)], "problems": problems}

    def numerics(self, ctx: Any, experiment: str, run: str, step: str | None) -> dict[str, Any]:
        """Numerics of one step of one run, and the steps that there are.

        Args:
            ctx: TensorBoard's request context.
            experiment: Id of the experiment.
            run: Name of the run.
            step: Which step, None for the last.

        Raises:
            NotFoundError: No such run or step.
            RequestError: The step is no number.
        """
        problems: list[str] = []
        points = {p["step"]: p for p in self._read(ctx, experiment, run, "numerics", problems)}
        steps = sorted(points)
        if step is None:
            chosen = steps[-1] if steps else None
        else:
            try:
                chosen = int(step)
            except ValueError:
                raise RequestError(f"`step` must be a whole number. Received: {step!r}") from None
            if chosen not in points:
                raise NotFoundError(f"Run {run!r} has no numerics of step {chosen}: {steps}")
        tensors = [] if chosen is None else points[chosen]["tensors"]
        return {
            "run": run, "steps": steps, "step": chosen, "tensors": tensors, "problems": problems,
        }  # fmt: skip

    def tables(self, ctx: Any, experiment: str) -> dict[str, Any]:
        """Every table, built in or written by a run, with its prices for what the runs count."""
        problems: list[str] = []
        known = dict(tables())
        written: dict[str, list[str]] = collections.defaultdict(list)
        keys: dict[str, tuple[str, tuple[str, ...]]] = {}
        for run in sorted(self._tags(ctx, experiment, None, [])):
            for counts in self._counts(ctx, experiment, run, problems).values():
                for rows in (counts["rows"], *counts["targets"].values()):
                    keys.update((row["key"], (row["kind"], tuple(row["formats"]))) for row in rows)
            for entry in self._read(ctx, experiment, run, "table", problems):
                try:
                    table = _table(entry["table"])
                except (KeyError, TypeError, ValueError) as error:
                    problems.append(f"{run}: a table cannot be read: {error!r}")
                    continue
                written[table.name].append(run)
                if table.name in known and known[table.name].rows != table.rows:
                    problems.append(
                        f"{run}: this run's table {table.name!r} differs from another of that "
                        "name, which is shown instead."
                    )
                known.setdefault(table.name, table)
        return {
            "tables": [
                {**_described(table, keys), "built_in": name in tables(), "runs": written[name]}
                for name, table in known.items()
            ],
            "default": next(iter(known)),
            "targets": list(TARGETS),
            "problems": problems,
        }

    def _counts(
        self, ctx: Any, experiment: str, run: str, problems: list[str]
    ) -> dict[str, dict[str, Any]]:
        """Counts of every step signature of one run by their id."""
        counts = {}
        for entry in self._read(ctx, experiment, run, "counts", problems):
            try:
                counts[entry["id"]] = {"id": entry["id"], **_counted(json.dumps(entry["tally"]))}
            except (KeyError, TypeError, ValueError) as error:
                problems.append(f"{run}: counts cannot be read: {error}")
        return counts

    def _tags(
        self, ctx: Any, experiment: str, run: str | None, problems: list[str]
    ) -> dict[str, dict[str, str]]:
        """Kind of entry of each tag of each run; {} for a run without a readable tag."""
        found = self._provider.list_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=events.PLUGIN_NAME,
            run_tag_filter=None if run is None else provider.RunTagFilter(runs=[run]),
        )
        result: dict[str, dict[str, str]] = {}
        for name, tags in found.items():
            result[name] = {}
            for tag, series in tags.items():
                try:
                    result[name][tag] = events.entry_of(series.plugin_content)
                except ValueError as error:
                    problems.append(f"{name}, {tag}: {error}")
        return result

    def _read(
        self,
        ctx: Any,
        experiment: str,
        run: str,
        entry: str,
        problems: list[str],
    ) -> Iterator[dict[str, Any]]:
        """Entries of one kind of one run, as they were written, in the order of their steps."""
        tags = self._tags(ctx, experiment, run, problems)
        if run not in tags:
            raise NotFoundError(f"There is no run {run!r} with an energy account.")
        wanted = [tag for tag, kind in tags[run].items() if kind == entry]
        if not wanted:
            return
        series = self._provider.read_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=events.PLUGIN_NAME,
            downsample=self._samples,
            run_tag_filter=provider.RunTagFilter(runs=[run], tags=wanted),
        )
        for tag in sorted(series.get(run, {})):
            for datum in series[run][tag]:
                try:
                    yield {
                        **events.load(datum.numpy.item(), _REQUIRED[entry]),
                        "wall_time": datum.wall_time,
                    }
                except ValueError as error:
                    problems.append(f"{run}, {tag}, step {datum.step}: {error}")


@functools.lru_cache(maxsize=256)
def _counted(text: str) -> dict[str, Any]:
    """Counts of one step signature for the page; `text` is the JSON of a `Tally`."""
    tally = Tally.from_dict(json.loads(text))
    return {
        "name": tally.name,
        "signature": tally.signature,
        "samples": tally.samples,
        "notes": list(tally.notes),
        "rows": [_row(record) for record in tally.records],
        "targets": {name: _totals(retarget(tally, name)) for name in TARGETS},
        "unpriced": [
            {"op": u.op, "count": u.count, "elements": u.elements, "layers": list(u.layers)}
            for u in tally.unpriced
        ],
        "traffic": [
            {"role": t.role, "direction": t.direction, "bits": t.bits, "elements": t.elements}
            for t in tally.traffic
        ],
    }


def _row(record: Record) -> dict[str, Any]:
    return {
        "layer": record.layer,
        "pass": record.pass_,
        "kind": record.kind,
        "formats": list(record.formats),
        "key": key(record.kind, record.formats),
        "count": record.count,
    }


def _totals(tally: Tally) -> list[dict[str, Any]]:
    """Counts of a whole step by kind and formats."""
    totals: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
    for record in tally.records:
        totals[record.kind, record.formats] += record.count
    return [
        {"kind": kind, "formats": list(formats), "key": key(kind, formats), "count": count}
        for (kind, formats), count in totals.items()
    ]


def _table(data: dict[str, Any]) -> EnergyTable:
    """Reads what `EnergyTable.to_dict` gave."""

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    return EnergyTable(**plain({**data, "rows": [Row(**plain(row)) for row in data["rows"]]}))


def _described(table: EnergyTable, keys: dict[str, tuple[str, tuple[str, ...]]]) -> dict[str, Any]:
    """A table with its prices for kinds of operations; None where it has none."""
    prices: dict[str, dict[str, Any] | None] = {}
    missing: dict[str, list[str]] = {}
    for name, (kind, formats) in sorted(keys.items()):
        price = unit_price(table, kind, formats)
        prices[name] = None
        if price.priced:
            parts = [
                {"name": p.name, "pj": p.pj, "low": p.low, "high": p.high, "text": str(p)}
                for p in price.parts
            ]
            prices[name] = {"pj": price.pj, "low": price.low, "high": price.high, "parts": parts}
        else:
            missing[name] = list(price.missing)
    return {
        **table.to_dict(),
        "prices": prices,
        "missing": missing,
        "memory": [_level(table, level) for level in table.levels],
    }


def _level(table: EnergyTable, level: str) -> dict[str, Any]:
    """Prices of a memory level per byte; tables print them per 64 bits."""
    result: dict[str, Any] = {"level": level}
    for direction in ("read", "write"):
        cost = table.cost(direction, level)
        if cost is not None:
            result[direction] = {"pj": cost.pj / 8, "low": cost.low / 8, "high": cost.high / 8}
    return result
