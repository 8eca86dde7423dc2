"""Event files of the energy account: what the callback writes and the TensorBoard tab reads.

Every entry is one JSON text in a scalar string tensor. The summary metadata name the plugin
and the kind of the entry, so that tags mean nothing to the reader:

| Kind | Tag | Written | Holds |
|---|---|---|---|
| `counts` | `energy/counts/ID` | once per signature | a `Tally`; ID from `signature_id` |
| `table` | `energy/table/NAME` | once per table | an `EnergyTable` of the user's own |
| `progress` | `energy/progress` | at an interval | counters since the start of training |
| `numerics` | `energy/numerics` | at an interval | one `TensorNumerics` per tensor |

TensorBoard keeps only a sample of the entries of a tag (100, or 10 without its fast loader;
`--samples_per_plugin lns_energy=1000` raises it), though always the last one. That is why
`progress` counts from the start of training and never since the entry before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

if TYPE_CHECKING:
    from tf_lns.energy.counts import Tally
    from tf_lns.energy.table import EnergyTable

PLUGIN_NAME = "lns_energy"
"""Name of the TensorBoard plugin that shows these entries."""

SCHEMA = 1
"""Version of the entries; `load` refuses others."""

ENTRIES = ("counts", "table", "progress", "numerics")
"""Kinds of entries."""


@dataclasses.dataclass(frozen=True)
class TensorNumerics:
    """What a low-bit format does to the values of one tensor.

    Attributes:
        tensor: Name of the tensor, unique among those of one step.
        layer: Path of its layer.
        role: `"weights"`, `"activations"`, `"errors"` or `"gradients"`.
        format: Name of the format, as in `Record`.
        elements: How many values were looked at.
        saturated: Share of them above the largest magnitude of the format.
        underflowed: Share of them that are not 0 and below the smallest magnitude.
        zero: Share of them that are 0.
        first: Exponent of the first entry of `counts`.
        counts: `counts[i]` values have 2^(first + i) <= |x| < 2^(first + i + 1). Zeros are
            in none of them.
        smallest: log2 of the smallest magnitude of the format, None if unknown; where each
            channel has a scale, that of the smallest scale.
        largest: log2 of the largest magnitude of the format, None if unknown; where each
            channel has a scale, that of the largest scale.
    """

    tensor: str
    layer: str
    role: str
    format: str
    elements: int
    saturated: float
    underflowed: float
    zero: float
    first: int = 0
    counts: tuple[int, ...] = ()
    smallest: float | None = None
    largest: float | None = None


def signature_id(signature: str) -> str:
    """Short name of a step signature, which may be long: 12 hexadecimal digits.

    >>> signature_id("x: [32, 784]")
    'ee696afa28d0'
    """
    return hashlib.sha256(signature.encode()).hexdigest()[:12]


class EnergyWriter:
    """Writes the energy account of one run.

    The folder should be the run's alone: without its fast loader TensorBoard reads only the
    newest of several event files that are being written in one folder.

    Args:
        log_dir: Folder of the run; created when the first entry is written.
    """

    def __init__(self, log_dir: str | os.PathLike[str]):
        self._writer = tf.summary.create_file_writer(
            os.fspath(log_dir), filename_suffix=f".{PLUGIN_NAME}"
        )
        self._written: set[str] = set()

    def write_counts(self, signature: str, tally: Tally) -> None:
        """Writes the counts of one step, unless those of this signature are there already.

        Args:
            signature: Which steps these are the counts of, see `Tally.signature`.
            tally: The counts.
        """
        key = signature_id(signature)
        self._once("counts", key, {"id": key, "signature": signature, "tally": tally.to_dict()})

    def write_table(self, table: EnergyTable) -> None:
        """Writes a table that is not built in, so that the tab can price with it.

        Args:
            table: The table.
        """
        self._once("table", table.name, {"table": table.to_dict()})

    def write_progress(
        self,
        step: int,
        epoch: int,
        steps_by_signature: Mapping[str, float],
        samples: int,
        joules: Mapping[str, float],
        metrics: Mapping[str, float] | None = None,
        val_steps_by_signature: Mapping[str, float] | None = None,
    ) -> None:
        """Writes the counters. All of them count from the start of training.

        Args:
            step: Training steps so far.
            epoch: Epochs so far.
            steps_by_signature: Training steps so far, by step signature.
            samples: Samples trained on so far.
            joules: Energy of the training steps so far in J, by name of the table. The tab
                computes its figures from the counts and compares them with these.
            metrics: Latest value of each metric, `{"accuracy": 0.97, "val_loss": 0.1}`.
            val_steps_by_signature: Validation steps so far, by step signature.
        """

        def by_id(steps: Mapping[str, float]) -> dict[str, float]:
            return {signature_id(s): _number(n) for s, n in steps.items()}

        self._write(
            "progress",
            "energy/progress",
            step,
            {
                "step": int(step),
                "epoch": int(epoch),
                "steps": by_id(steps_by_signature),
                "val_steps": by_id(val_steps_by_signature or {}),
                "samples": int(samples),
                "joules": {name: _number(value) for name, value in joules.items()},
                # NaN is no JSON; the tab draws nothing where a metric is missing.
                "metrics": {
                    name: float(value)
                    for name, value in (metrics or {}).items()
                    if math.isfinite(value)
                },
            },
        )

    def write_numerics(self, step: int, entries: Iterable[TensorNumerics]) -> None:
        """Writes the numerics of the tensors of one step.

        Args:
            step: Training steps so far.
            entries: One per tensor.
        """
        self._write(
            "numerics",
            "energy/numerics",
            step,
            {"step": int(step), "tensors": [dataclasses.asdict(entry) for entry in entries]},
        )

    def flush(self) -> None:
        """Hands what was written to the file system."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file; nothing can be written after."""
        self._writer.close()

    def _once(self, entry: str, name: str, data: dict[str, Any]) -> None:
        tag = f"energy/{entry}/{name}"
        if tag not in self._written:
            self._write(entry, tag, 0, data)
            self._written.add(tag)

    def _write(self, entry: str, tag: str, step: int, data: dict[str, Any]) -> None:
        text = json.dumps(
            {"schema": SCHEMA, **data}, allow_nan=False, default=_number, separators=(",", ":")
        )
        # A callback may run where summaries are off (tf.summary.record_if): its own are on.
        with self._writer.as_default(), tf.summary.record_if(True):
            tf.summary.write(tag, tf.constant(text), step=int(step), metadata=_metadata(entry))


def entry_of(plugin_content: bytes) -> str:
    """Which of `ENTRIES` the summary metadata of a tag announce.

    Args:
        plugin_content: `SummaryMetadata.plugin_data.content` of the tag.

    Raises:
        ValueError: Written by a release of tf_lns with another schema, or not by tf_lns.
    """
    return str(load(plugin_content, ("entry",))["entry"])


def load(text: str | bytes, required: Iterable[str] = ()) -> dict[str, Any]:
    """Reads one entry.

    Args:
        text: The JSON text of the entry.
        required: Keys that must be there.

    Raises:
        ValueError: No JSON object of this schema, or a key is missing.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"An entry of the energy account is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"An entry of the energy account must have schema {SCHEMA}. Received: {found!r}; "
            "read it with the release of tf_lns that wrote it."
        )
    missing = [key for key in required if key not in data]
    if missing:
        raise ValueError(f"An entry of the energy account lacks {missing}.")
    return data


def _metadata(entry: str) -> tf.compat.v1.SummaryMetadata:
    """Metadata of a tag; TensorBoard does not list a tag without a data class."""
    metadata = tf.compat.v1.SummaryMetadata(data_class="DATA_CLASS_TENSOR")
    metadata.plugin_data.plugin_name = PLUGIN_NAME
    metadata.plugin_data.content = json.dumps({"schema": SCHEMA, "entry": entry}).encode()
    return metadata


def _number(value: Any) -> float:
    """A plain int or float of a NumPy scalar, a zero-rank array or a Python number."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) else float(value)
