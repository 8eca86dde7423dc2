"""Energy of one training step of BERT-base, BERT-large and ResNet-50, taken apart.

    pip install keras-hub matplotlib
    python examples/energy_bert.py [--models bert-base] [--batch 1 32] [--out energy_output]

Each step is traced, not run: forward, loss, backward and update, in FP32 with Adam and in LNS with
LNS-Madam. The counts are priced with every built-in energy table, and the ratio of FP32, FP8 and
INT8 to LNS-8 is shown rung by rung: from the multiplier alone to the whole step with its memory
traffic. energy_bert.json keeps the counts, so that every figure can be computed again. Nothing
is measured on hardware. docs/energy.md explains what is assumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import os
import pathlib
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from console import progress_bars, silent_stderr
from rich import box
from rich.console import Console
from rich.table import Table

with silent_stderr():
    import keras
    import tensorflow as tf

    import tf_lns
    from tf_lns.energy import EnergyTable, Tally, retarget, tables, tally, unit_price
    from tf_lns.energy.report import human_energy, human_ratio

Range = tuple[float, float, float]
"""An energy or a ratio: low, middle, high."""

RECIPES = {
    "fp32": None,
    "lns8": tf_lns.LNSConfig(),
    "lns8 g5:2": tf_lns.LNSConfig(gradients="lns5:2"),
    "lns8 g5:1": tf_lns.LNSConfig(gradients="lns5:1"),
}
"""What is traced; `g5:2` are gradients of 5 bits with base factor 2."""

FORMATS = (*(name for name in RECIPES if name != "fp32"), "fp8", "int8", "bf16", "fp16", "fp32")
"""What is priced: fp8 to fp16 are the FP32 step with its products in that format."""

CONVERSIONS = ("encode", "requantize", "decode")

CLAIMS = {"fp32": {"v1": 60.0, "v3": 11.2}, "fp8": {"v3": 2.28}}
"""Ratios to LNS that the paper states: arXiv v1 over 60, v3 and its figure 11.2 and 2.28."""

# --- Models ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Net:
    """A model, and what one step of it is given."""

    title: str
    build: Callable[[int], keras.Model]
    batch: Callable[[int, int], Any]
    from_logits: bool
    millijoules: float
    """Printed in the paper's figure for LNS, per iteration."""
    weight_macs: float
    """Products with weights of a forward pass on one sample, as published."""


def build_bert(layers: int, width: int, heads: int, tokens: int) -> keras.Model:
    """BERT for answering questions: where the answer starts and where it ends."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30522,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        dropout=0.1,
        max_sequence_length=max(512, tokens),
    )
    scores = keras.layers.Dense(2, name="span")(backbone.output["sequence_output"])
    # The backbone's pooler, which this task does not use, stays out of the graph.
    return keras.Model(backbone.input, keras.layers.Permute((2, 1), name="start_and_end")(scores))


def text_batch(size: int, tokens: int) -> tuple:
    names = ("token_ids", "segment_ids", "padding_mask")
    inputs = {name: tf.TensorSpec((size, tokens), "int32") for name in names}
    return inputs, tf.TensorSpec((size, 2), "int32")


def image_batch(size: int, tokens: int) -> tuple:
    return tf.TensorSpec((size, 224, 224, 3), "float32"), tf.TensorSpec((size,), "int32")


NETS = {
    "bert-base": Net(
        "BERT-base", lambda tokens: build_bert(12, 768, 12, tokens), text_batch, True, 7.9, 32.6e9
    ),
    "bert-large": Net(
        "BERT-large", lambda tokens: build_bert(24, 1024, 16, tokens), text_batch, True, 27.7, 116e9
    ),
    "resnet-50": Net(
        "ResNet-50",
        lambda tokens: keras.applications.ResNet50(weights=None),
        image_batch,
        False,
        0.98,
        4.09e9,
    ),
}


def build(net: Net, config: tf_lns.LNSConfig | None, tokens: int) -> keras.Model:
    """A compiled model with random weights, in float or in LNS."""
    model = net.build(tokens)
    optimizer: keras.optimizers.Optimizer = keras.optimizers.Adam(1e-4)
    if config is not None:
        # keras-hub's table of positions is added to, not multiplied with: it stays float.
        overrides = {"position_embedding": None}
        names = {layer.name for layer in model.layers}
        model = tf_lns.quantize_model(
            model, config, {k: v for k, v in overrides.items() if k in names}, in_place=True
        )
        optimizer = tf_lns.LNSMadam(2**-8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=net.from_logits)
    model.compile(optimizer=optimizer, loss=loss)
    return model


# --- Counts ----------------------------------------------------------------------------------


def collapse(counts: Tally) -> Tally:
    """The same counts without layers: what is needed to price a whole step."""

    def merge(entries: Iterable[Any], amount: str, drop: tuple[str, ...]) -> tuple:
        sums: dict[Any, list[float]] = defaultdict(list)
        for entry in entries:
            changes: dict[str, Any] = dict.fromkeys(drop, "")
            if hasattr(entry, "reduction"):
                changes["reduction"] = None
            sums[dataclasses.replace(entry, **changes, **{amount: 0})].append(
                getattr(entry, amount)
            )
        return tuple(
            dataclasses.replace(entry, **{amount: sum(n)}) for entry, n in sorted_items(sums)
        )

    return dataclasses.replace(
        counts,
        records=merge(counts.records, "count", ("layer", "op")),
        traffic=merge(counts.traffic, "elements", ("layer",)),
        operands=merge(counts.operands, "elements", ("layer",)),
    )


def sorted_items(sums: dict[Any, list[float]]) -> list:
    return sorted(sums.items(), key=lambda item: str(item[0]))


def count_all(arguments: argparse.Namespace, console: Console) -> list[dict]:
    """Traces every model in every recipe and batch size; one model is in memory at a time."""
    runs = {
        (name, size): {
            "model": name,
            "batch": size,
            "tokens": arguments.tokens if NETS[name].batch is text_batch else None,
            "parameters": 0,
            "counts": {},
        }
        for name in arguments.models
        for size in arguments.batch
    }
    with progress_bars(console, 24, "{task.completed}/{task.total}  {task.fields[now]}") as bars:
        total = len(arguments.models) * len(RECIPES) * (1 + len(arguments.batch))
        task = bars.add_task("Counting", total=total, now="")
        for name in arguments.models:
            net = NETS[name]
            for recipe, config in RECIPES.items():
                bars.update(task, description=f"{net.title}, {recipe}", now="building")
                model = build(net, config, arguments.tokens)
                bars.advance(task)
                for size in arguments.batch:
                    bars.update(task, now=f"tracing a step of {size}")
                    counts = tally(model, net.batch(size, arguments.tokens))
                    runs[name, size]["counts"][recipe] = collapse(counts).to_dict()
                    runs[name, size]["parameters"] = model.count_params()
                    bars.advance(task)
                del model, counts
                keras.backend.clear_session()
                gc.collect()
        bars.update(task, description="Counted", now="")
    return list(runs.values())


def counts_in(run: dict, format: str) -> Tally:
    """Counts of a step in a format: as traced, or the FP32 step with its products in it."""
    traced = run["counts"].get(format)
    if traced is not None:
        return Tally.from_dict(traced)
    return retarget(Tally.from_dict(run["counts"]["fp32"]), format)


# --- Energies --------------------------------------------------------------------------------


def divide(a: Range | None, b: Range | None) -> Range | None:
    """a / b, from all low over all high to the reverse."""
    if a is None or b is None:
        return None
    return a[0] / b[2], a[1] / b[1], a[2] / b[0]


def operand_format(format: str) -> str:
    """Format of both operands of a product: gradients are none."""
    return "lns8:8" if format.startswith("lns8") else format


RUNGS = {
    "a": "multiplier alone",
    "b": "MAC, never made linear",
    "c": "whole MAC",
    "d": "all MACs, conversions",
    "e": "+ element-wise, update",
    "f": "+ memory",
}
"""What is compared, from least to most."""


def unit_rungs(table: EnergyTable, format: str) -> dict[str, Range | None]:
    """Energy in pJ of one multiply-accumulate, and of parts of it."""
    price = unit_price(table, "mac", (operand_format(format),) * 2)
    if not price.priced:
        return dict.fromkeys("abc")
    names = ("multiply", "exponent add")
    result: dict[str, Range | None] = {}
    for rung, wanted in (("a", names), ("b", (*names, "accumulate"))):
        parts = [part for part in price.parts if part.name in wanted]
        result[rung] = (
            (
                math.fsum(p.low for p in parts),
                math.fsum(p.pj for p in parts),
                math.fsum(p.high for p in parts),
            )
            if parts
            else None
        )
    return {**result, "c": (price.low, price.pj, price.high)}


def step_rungs(table: EnergyTable, counts: Tally) -> dict[str, Range | None]:
    """Energy in pJ of a step: products and conversions, all arithmetic, each memory level."""
    energy = counts.energy(table)
    levels = [f"f {level}" for level in table.levels]
    # Where a table has no price for most kinds of work, its sums would say nothing.
    if any(
        gap.what.startswith(("mac ", *CONVERSIONS, "transcendental")) for gap in energy.unpriced
    ):
        return dict.fromkeys(["d", "e", *levels])
    network = [r for r in energy.records if r.record.kind in ("mac", *CONVERSIONS)]
    whole = (energy.low_pj, energy.total_pj, energy.high_pj)
    result: dict[str, Range | None] = {
        "d": (
            math.fsum(r.low_pj for r in network),
            math.fsum(r.pj for r in network),
            math.fsum(r.high_pj for r in network),
        ),
        "e": whole,
    }
    for level, cost in energy.memory.items():
        result[f"f {level}"] = (whole[0] + cost.low, whole[1] + cost.pj, whole[2] + cost.high)
    return result


def parts_of(counts: Tally, table: EnergyTable) -> dict[str, float]:
    """Energy in pJ by what it is spent on."""
    sums = {"products": 0.0, "conversions": 0.0, "element-wise": 0.0, "update": 0.0}
    for entry in counts.energy(table).records:
        kind = entry.record.kind
        if kind == "mac":
            name = "products"
        elif kind in CONVERSIONS:
            name = "conversions"
        else:
            name = "update" if entry.record.pass_ == "update" else "element-wise"
        sums[name] += entry.pj
    return sums


def evaluate(run: dict) -> dict:
    """Everything that a run's counts give under every table."""
    counts = {format: counts_in(run, format) for format in FORMATS}
    fp32 = counts["fp32"]
    network = ("forward", "error", "gradient")
    result: dict[str, Any] = {
        "macs": {**{p: fp32.macs(p) for p in network}, "total": fp32.macs()},
        "tables": {},
    }
    for name, table in tables().items():
        rungs = {
            format: {**unit_rungs(table, format), **step_rungs(table, counts[format])}
            for format in FORMATS
        }
        result["tables"][name] = {
            "energies_pj": rungs,
            "ratios_to_lns8": {
                format: {rung: divide(rungs[format][rung], rungs["lns8"][rung]) for rung in row}
                for format, row in rungs.items()
            },
            "parts_pj": {
                format: parts_of(counts[format], table) if rungs[format]["e"] else None
                for format in FORMATS
            },
            "bytes": {
                format: math.fsum(traffic.bytes for traffic in counts[format].traffic)
                for format in FORMATS
            },
        }
    return result


def paper_rows(runs: list[dict]) -> list[dict]:
    """pJ per MAC of the paper's figure for LNS, if an iteration were one sample."""
    rows = []
    for run in runs:
        if run["batch"] == 1:
            net = NETS[run["model"]]
            pj = net.millijoules * 1e9
            rows.append(
                {
                    "model": run["model"],
                    "millijoules": net.millijoules,
                    "three_products_per_weight": pj / (3 * net.weight_macs),
                    "all_counted_macs": pj / run["result"]["macs"]["total"],
                }
            )
    return rows


# --- Output ----------------------------------------------------------------------------------


def level_titles(table: str, rungs: Iterable[str]) -> dict[str, str]:
    """Titles of all rungs that a table has."""
    memory = {"sram-8k": "SRAM 8 KB", "sram-32k": "SRAM 32 KB", "sram-1m": "SRAM 1 MB"}
    titles = {}
    for rung in rungs:
        letter, _, level = rung.partition(" ")
        place = memory.get(level, level.upper())
        titles[rung] = f"{RUNGS[letter]}{f', {place}' if level else ''}"
    return titles


def shown(rung: str) -> bool:
    """Small memories are in the file, not in tables and pictures: no step fits in them."""
    return rung not in ("f sram-8k", "f sram-32k")


def ratio_table(run: dict, name: str) -> Table:
    """Ratios to LNS-8, rung by rung."""
    ratios = run["result"]["tables"][name]["ratios_to_lns8"]
    title = f"{NETS[run['model']].title}, batch {run['batch']}: energy / LNS-8, table {name}"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("what counts", no_wrap=True)
    formats = [format for format in FORMATS if format != "lns8"]
    for format in formats:
        table.add_column(format, justify="right", no_wrap=True)
    for rung, text in level_titles(name, ratios["fp32"]).items():
        values = [ratios[format][rung] for format in formats]
        if shown(rung) and any(values):
            cells = ["-" if value is None else human_ratio(value[1]) for value in values]
            table.add_row(f"{rung[0]}  {text}", *cells)
    return table


def energy_table(run: dict, name: str) -> Table | None:
    """Energies of a step by format."""
    found = run["result"]["tables"][name]
    title = f"{NETS[run['model']].title}, batch {run['batch']}: energy of a step, table {name}"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("products in", no_wrap=True)
    for column in ("products", "conversions", "element-wise", "update", "total", "low to high"):
        table.add_column(column, justify="right", no_wrap=True)
    for format, parts in found["parts_pj"].items():
        if parts is not None:
            low, total, high = found["energies_pj"][format]["e"]
            values = [human_energy(v) if v else "-" for v in (*parts.values(), total)]
            table.add_row(format, *values, f"{human_energy(low)} to {human_energy(high)}")
    return table if table.row_count else None


COLOURS = {"unit": "#2f6db5", "step": "#7fb0de"}
PARTS = {
    "products": "#2f6db5",
    "conversions": "#e0913a",
    "element-wise": "#b9bfc7",
    "update": "#6fae8f",
}
INK, FAINT, CLAIM = "#333a44", "#6b7480", "#c0392b"


def new_figure(width: float, height: float, title: str, below: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.012, 1 - 0.22 / height, title, fontsize=13, fontweight="bold", color=INK, va="top"
    )
    figure.text(0.012, 1 - 0.52 / height, below, fontsize=9, color=FAINT, va="top")
    return figure


def tidy(axes: Any) -> None:
    axes.tick_params(axis="x", labelsize=8, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c9ced6")


def open_tables() -> list[str]:
    """Names of the tables that price more than whole MACs."""
    return [name for name, table in tables().items() if table.levels]


def draw_ratios(run: dict, path: pathlib.Path) -> None:
    """The ratio of FP32, FP8 and INT8 to LNS-8, rung by rung, a row of panels per table."""
    limits = {"fp32": (0.8, 900), "fp8": (0.5, 90), "int8": (0.3, 30)}
    found = run["result"]["tables"]
    names = open_tables()
    rungs = {name: [r for r in found[name]["ratios_to_lns8"]["fp32"] if shown(r)] for name in names}
    heights = [len(rungs[name]) for name in names]
    height = 1.75 + 0.32 * sum(heights) + 0.85 * (len(names) - 1)
    title = f"How many times the energy of LNS-8? A training step of {NETS[run['model']].title}"
    below = (
        f"Batch {run['batch']}. Dark: one multiply-accumulate (MAC), or parts of it. Light: the "
        "whole step. Whiskers: one format at its low, the other at its high\nestimate. Dashed: "
        "what the paper states, arXiv v1 and v3. All bars are computed, nothing is measured."
    )
    figure = new_figure(11.6, height, title, below)
    grid = figure.add_gridspec(
        len(names),
        len(limits),
        height_ratios=heights,
        width_ratios=(1.25, 1, 0.9),
        left=0.17,
        right=0.985,
        top=1 - 1.42 / height,
        bottom=0.3 / height,
        hspace=0.34,
        wspace=0.06,
    )
    for row, name in enumerate(names):
        titles = level_titles(name, rungs[name])
        for column, (format, extent) in enumerate(limits.items()):
            axes = figure.add_subplot(grid[row, column], xscale="log", xlim=extent)
            axes.set_ylim(len(rungs[name]) - 0.4, -0.6)
            draw_rungs(axes, found[name]["ratios_to_lns8"][format], rungs[name])
            for source, claim in CLAIMS.get(format, {}).items():
                over = "over " if source == "v1" else ""
                axes.axvline(claim, color=CLAIM, linewidth=1.1, linestyle=(0, (4, 3)))
                place = {"x": claim, "y": -0.7, "ha": "center", "va": "bottom"}
                axes.text(s=f"{source}: {over}{claim:g}x", fontsize=8, color=CLAIM, **place)
            axes.set_title(f"{format.upper()} / LNS-8", loc="left", fontsize=9.5, color=INK, pad=17)
            if column == 0:
                edge = axes.get_position()
                x = (0.012 - edge.x0) / edge.width
                at = {"x": x, "transform": axes.get_yaxis_transform(), "color": INK}
                axes.text(y=-0.95, s=name, fontsize=10, fontweight="bold", **at)
                for place, rung in enumerate(rungs[name]):
                    axes.text(y=place, s=rung[0], fontsize=9, fontweight="bold", va="center", **at)
                    text = {**at, "x": x + 0.045}
                    axes.text(y=place, s=titles[rung], fontsize=9, va="center", **text)
    figure.savefig(path)


def draw_rungs(axes: Any, ratios: dict[str, Range], rungs: list[str]) -> None:
    """A bar from 1 to each ratio, with its range."""
    for place, rung in enumerate(rungs):
        low, ratio, high = ratios[rung]
        axes.barh(place, ratio - 1, 0.6, left=1, color=COLOURS["unit" if rung in "abc" else "step"])
        axes.plot([low, high], [place, place], color=INK, linewidth=0.9)
        axes.plot([low, high], [place, place], "|", color=INK, markersize=5)
        axes.text(
            max(high, 1) * 1.12,
            place,
            human_ratio(ratio),
            va="center",
            fontsize=8.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    axes.axvline(1, color=INK, linewidth=1)
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 500) if t <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks([])
    tidy(axes)


def draw_parts(runs: list[dict], path: pathlib.Path) -> None:
    """What the energy of a step is spent on, by model and format, a row of panels per table."""
    names = open_tables()
    formats = [format for format in FORMATS if " g5" not in format]
    below = (
        "Batch {}; arithmetic only, memory traffic is a separate account. Computed, not measured."
    )
    height = 1.55 + 2.3 * len(names)
    figure = new_figure(
        12.4, height, "What a training step spends its energy on", below.format(runs[0]["batch"])
    )
    grid = figure.add_gridspec(
        len(names),
        len(runs),
        left=0.055,
        right=0.985,
        top=1 - 1.35 / height,
        bottom=0.75 / height,
        hspace=0.52,
        wspace=0.13,
    )
    handles: dict[str, Any] = {}
    for row, name in enumerate(names):
        for column, run in enumerate(runs):
            axes = figure.add_subplot(grid[row, column])
            found = run["result"]["tables"][name]
            widest = max(found["energies_pj"][format]["e"][1] for format in formats)
            for place, format in enumerate(formats):
                left = 0.0
                for part, value in found["parts_pj"][format].items():
                    bar = axes.barh(place, value / 1e9, 0.66, left=left / 1e9, color=PARTS[part])
                    handles.setdefault(part, bar)
                    left += value
                axes.text(
                    left / 1e9 + 0.012 * widest / 1e9,
                    place,
                    human_energy(left),
                    va="center",
                    fontsize=8.5,
                    color=INK,
                )
            axes.set_xlim(0, 1.22 * widest / 1e9)
            axes.set_yticks(range(len(formats)), formats if column == 0 else [""] * len(formats))
            axes.invert_yaxis()
            tidy(axes)
            axes.tick_params(axis="y", labelsize=9, colors=INK)
            axes.set_title(
                f"{NETS[run['model']].title}, table {name}", loc="left", fontsize=10, color=INK
            )
            if row == len(names) - 1:
                axes.set_xlabel("mJ per step", fontsize=8.5, color=INK)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="upper left",
        bbox_to_anchor=(0.006, 1 - 0.68 / height),
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.savefig(path)


def rounded(value: Any) -> Any:
    """Floats to six digits, everywhere inside."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inside) for inside in value]
    return value


def pretty(value: Any, indent: int = 0) -> str:
    """JSON in which what fits into a line stands on one line."""
    flat = json.dumps(value)
    if len(flat) + indent <= 100 or not isinstance(value, dict | list | tuple):
        return flat
    space = " " * (indent + 1)
    if isinstance(value, dict):
        lines = [f"{json.dumps(k)}: {pretty(v, indent + 1)}" for k, v in value.items()]
    else:
        lines = [pretty(inside, indent + 1) for inside in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{space}" + f",\n{space}".join(lines) + f"\n{' ' * indent}{last}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=list(NETS), default=list(NETS))
    add("--batch", type=int, nargs="+", default=[1], help="samples of a step, one or several")
    add("--tokens", type=int, default=384, help="length of a sequence of BERT")
    add("--out", type=pathlib.Path, default=pathlib.Path("energy_output"))
    arguments = parser.parse_args()
    for name in ("batch", "tokens"):
        values = getattr(arguments, name)
        if min(values if isinstance(values, list) else [values]) < 1:
            parser.error(f"--{name} must be 1 or more. Received: {values}")
    return arguments


def main() -> None:
    """Counts, prices, prints tables and writes the file and both pictures."""
    arguments = parse()
    if any(NETS[name].batch is text_batch for name in arguments.models):
        try:
            with silent_stderr():
                import keras_hub  # noqa: F401
        except ImportError:
            raise SystemExit("BERT is taken from keras-hub: pip install keras-hub") from None
    with silent_stderr():
        tf.config.list_logical_devices()
    # In a file or a pipe there is room for the tables.
    console = Console(width=None if sys.stdout.isatty() else 120)
    runs = count_all(arguments, console)
    for run in runs:
        run["result"] = evaluate(run)
        macs = run["result"]["macs"]
        passes = ", ".join(f"{p} {macs[p] / 1e9:.2f}" for p in macs if p != "total")
        console.print(
            f"{NETS[run['model']].title}, batch {run['batch']}: {run['parameters']:,} parameters, "
            f"{macs['total'] / 1e9:.2f} GMAC a step ({passes})"
        )
        for name in tables():
            for table in (energy_table(run, name), ratio_table(run, name)):
                if table is not None:
                    console.print(table)
    paper = paper_rows(runs)
    for row in paper:
        console.print(
            f"The paper's {row['millijoules']} mJ for {NETS[row['model']].title}, if an iteration "
            f"is one sample: {row['three_products_per_weight']:.4f} pJ per MAC at three products "
            f"per weight, {row['all_counted_macs']:.4f} with every MAC that is counted here"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = {
        "command": shlex.join(["python", "examples/energy_bert.py", *sys.argv[1:]]),
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "units": "energies in pJ; triples are low, middle, high",
        "paper_pj_per_mac": rounded(paper),
        "runs": [{**run, "result": rounded(run["result"])} for run in runs],
    }
    (arguments.out / "energy_bert.json").write_text(pretty(data) + "\n")
    try:
        draw_ratios(runs[0], arguments.out / "energy_bert.png")
        first = [run for run in runs if run["batch"] == arguments.batch[0]]
        draw_parts(first, arguments.out / "energy_bert_parts.png")
    except ImportError:
        console.print("No pictures: pip install matplotlib")
    console.print(f"Counts, energies and pictures: {arguments.out}")


if __name__ == "__main__":
    main()
