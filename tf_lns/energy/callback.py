"""`EnergyCallback`: the energy account of a training run."""

from __future__ import annotations

import os
import pathlib
import threading
import time
import warnings
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console

from tf_lns.energy import report, trace
from tf_lns.energy.comparison import Comparison, compare
from tf_lns.energy.count import count
from tf_lns.energy.events import EnergyWriter
from tf_lns.energy.ledger import Account, Ledger
from tf_lns.energy.numerics import StepNumerics, weight_numerics
from tf_lns.energy.price import Energy
from tf_lns.energy.table import EnergyTable, tables
from tf_lns.energy.watch import Step, StepWatcher

_LOOK_EVERY = 0.05
"""Seconds; as often as Keras moves its progress bar."""


class EnergyCallbackCore:
    """Mixin: `EnergyCallback`, to stand before the callback class of either Keras."""

    model: Any

    # Keras may call the batch methods in a thread of its own, so that a step is not waited for.
    async_safe = True

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        table: str | os.PathLike[str] | EnergyTable = "horowitz-45nm",
        batch: Any = None,
        compare: bool = True,
        update_freq: str | int = "epoch",
        numerics_freq: int | None = 1,
    ):
        super().__init__()
        if log_dir is not None and not isinstance(log_dir, str | os.PathLike):
            raise TypeError(f"`log_dir` must be a path or None. Received: log_dir={log_dir!r}")
        if log_dir is not None and not os.fspath(log_dir):
            raise ValueError("`log_dir` must name a folder; None for none. Received: log_dir=''")
        if isinstance(batch, bool | int | float | str):
            raise TypeError(
                "`batch` must be real data, (inputs, targets) of one step, or None. "
                f"Received: batch={batch!r}"
            )
        if not isinstance(compare, bool):
            raise TypeError(f"`compare` must be True or False. Received: compare={compare!r}")
        self.log_dir = pathlib.Path(log_dir) if log_dir is not None else None
        self.table = EnergyTable.load(
            pathlib.Path(table) if isinstance(table, os.PathLike) else table
        )
        self.batch = batch
        self.compare = compare
        self.update_freq = _frequency("update_freq", update_freq, '"epoch"', "epoch")
        self.numerics_freq = _frequency("numerics_freq", numerics_freq, "None", None)
        self.ledger = Ledger(self.log_dir / "energy.jsonl" if self.log_dir else None)
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._watchers: dict[str, StepWatcher] = {}
        self._signatures: dict[tuple[int, int, int], str | None] = {}
        self._pending: list[tuple[str, Step]] = []
        self._logged: tuple[float, dict[str, float]] = (0.0, {})
        self._compiled: tuple[Any, ...] = ()  # what the steps depend on besides their shapes
        self._generation = 0
        self._prices: dict[str, float] = {}
        self._writer: EnergyWriter | None = None
        self._numerics: StepNumerics | None = None
        self._fitting = False
        self._resumed = False
        self._epoch = 0
        self._trained = 0
        self._written_at = 0

    # --- Keras ------------------------------------------------------------------------

    def set_model(self, model: Any) -> None:
        """Sets the model and starts to note the shapes of its steps."""
        super().set_model(model)  # type: ignore[misc]
        known = self._watchers.get("train")
        if known is None or known.model is not model:
            self._watchers = {
                "train": StepWatcher(model, "train_step", "train_function"),
                "val": StepWatcher(model, "test_step", "test_function"),
            }
            self._numerics = None
        for watcher in self._watchers.values():
            watcher.install()

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Opens the event file."""
        self._fitting, self._resumed = True, False
        if self.log_dir is not None:
            try:
                self.log_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(f"`log_dir` cannot be written to: {error}") from error
            self._writer = EnergyWriter(self.log_dir)
            if self.table.name not in tables():
                self._writer.write_table(self.table)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Takes up the counters of an interrupted run, once backups have been restored."""
        self._epoch = epoch
        self._look_at_the_model()
        if not self._resumed:
            self._resumed = True
            note = self.ledger.resume(self._iterations())
            self._prices = self.ledger.prices(self.table)
            self._note(note)
            self._written_at = int(sum(self.ledger.training.steps.values()))
            if self._writer is not None:
                for name, tally in self.ledger.tallies.items():
                    self._writer.write_counts(name, tally)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Counts steps of a new signature, and writes the counters where they are due."""
        self._count_pending()
        if isinstance(self.update_freq, int):
            done = int(sum(self.ledger.training.steps.values()))
            if done - self._written_at >= self.update_freq:
                self._write({})

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Puts the energy into the logs; it is looked up at most 20 times a second."""
        now = time.monotonic()
        if now - self._logged[0] > _LOOK_EVERY:
            self._take("train")
            self._logged = (now, self._logs("train"))
        if logs is not None:
            logs.update(self._logged[1])

    def on_test_end(self, logs: dict | None = None) -> None:
        """Counts what `evaluate` has executed."""
        if not self._fitting:
            self._look_at_the_model()
        self._take("val")
        self._count_pending()
        if not self._fitting:
            if logs is not None:
                logs.update(self._logs("val"))
            self._remove()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the energy to the logs, and writes counters and numerics."""
        self._epoch = epoch + 1
        self._take("train")
        self._count_pending()
        self._check_watched()
        logs = {} if logs is None else logs
        logs.update(self._logs("train"))
        logs.update({f"val_{k}": v for k, v in self._logs("val").items()})
        self._write(logs)
        self._write_numerics(epoch)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the event file."""
        self._fitting = False
        self._remove()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # --- Steps ------------------------------------------------------------------------

    def _account(self, which: str) -> Account:
        return self.ledger.training if which == "train" else self.ledger.validation

    def _take(self, which: str) -> None:
        """Adds the steps that were executed since the last call."""
        with self._lock:
            for step in self._watchers[which].take():
                if self._key(step) in self._signatures:
                    self._add(which, step)
                else:
                    self._pending.append((which, step))

    def _key(self, step: Step) -> tuple[int, int, int]:
        return (id(step), self._generation, self._trained)

    def _add(self, which: str, step: Step) -> None:
        signature = self._signatures[self._key(step)]
        if signature is not None:
            self._account(which).add(signature, step.share, step.samples)

    def _count_pending(self) -> None:
        """Counts steps that are met for the first time; not in a thread, as it traces."""
        if not self._pending:
            return
        with self._lock:
            pending, self._pending = self._pending, []
            for which, step in pending:
                if self._key(step) not in self._signatures:
                    self._signatures[self._key(step)] = self._count(which, step)
                self._add(which, step)
        if self._fitting and self._resumed:  # from here a backup can be gone on from
            self.ledger.save(self._iterations())

    def _count(self, which: str, step: Step) -> str | None:
        """Counts one step; its signature, None where that cannot be done."""
        make = trace.training_step if which == "train" else trace.evaluation_step
        try:
            tally = count(make(self.model, step.specs, per_replica=True))
        except Exception as error:  # never a reason to end somebody's training
            self._warn(f"A step of {step.samples} samples could not be counted: {error}")
            return None
        if tally.unpriced:
            self._warn(
                "Operations that are not in the energy: "
                + ", ".join(entry.op for entry in tally.unpriced)
            )
        name = f"{'training' if which == 'train' else 'validation'} step of {tally.signature}"
        if self._generation:
            name += f"; model {self._generation + 1}"
        self.ledger.know(name, tally)
        self._prices[name] = tally.energy(self.table).total_pj
        if self._writer is not None:
            self._writer.write_counts(name, tally)
        return name

    def _logs(self, which: str) -> dict[str, float]:
        """Energy so far; nothing before the first step has been counted."""
        with self._lock:
            account = self._account(which)
            if not account.samples:
                return {}
            joules = account.joules(self._prices)
        return {"energy_j": joules, "energy_per_sample_j": joules / account.samples}

    def _look_at_the_model(self) -> None:
        """Notes what its steps depend on besides their shapes."""
        self._trained = trace.trained_parameters(self.model)
        compiled = (self.model, getattr(self.model, "optimizer", None), self.model.loss)
        if self._compiled and any(
            a is not b for a, b in zip(compiled, self._compiled, strict=True)
        ):
            self._generation += 1
            self._numerics = None
        self._compiled = compiled

    def _check_watched(self) -> None:
        if not self._watchers["train"].ran:
            self._warn(
                "This model does not train by its `train_step`, so its steps were not seen; "
                "count one with `tf_lns.energy.tally`."
            )

    def _remove(self) -> None:
        for watcher in self._watchers.values():
            watcher.remove()

    def _iterations(self) -> int:
        optimizer = getattr(self.model, "optimizer", None)
        return int(tf.convert_to_tensor(getattr(optimizer, "iterations", 0)))

    def _note(self, text: str | None) -> None:
        if text and text not in self.notes:
            self.notes.append(text)

    def _warn(self, text: str) -> None:
        """Says something once."""
        if text not in self.notes:
            self.notes.append(text)
            warnings.warn(text, stacklevel=2)

    # --- What is written --------------------------------------------------------------

    def _write(self, logs: dict[str, Any]) -> None:
        """Writes the counters."""
        with self._lock:
            done = int(sum(self.ledger.training.steps.values()))
            self._written_at = done
            self.ledger.save(self._iterations())
            if self._writer is None:
                return
            self._writer.write_progress(
                step=done,
                epoch=self._epoch,
                steps_by_signature=self.ledger.training.steps,
                samples=self.ledger.training.samples,
                joules={self.table.name: self.ledger.training.joules(self._prices)},
                metrics={
                    name: float(value)
                    for name, value in logs.items()
                    if "energy" not in name and isinstance(value, int | float)
                },
                val_steps_by_signature=self.ledger.validation.steps,
            )
            self._writer.flush()

    def _write_numerics(self, epoch: int) -> None:
        if self._writer is None or self.numerics_freq is None or epoch % self.numerics_freq:
            return
        entries = weight_numerics(self.model)
        if self.batch is not None:
            try:
                if self._numerics is None:
                    self._numerics = StepNumerics(self.model, self.batch)
                entries += self._numerics()
            except Exception as error:
                self._warn(f"The numerics of `batch` cannot be computed: {error}")
                self.batch = None
        if entries:
            self._writer.write_numerics(int(sum(self.ledger.training.steps.values())), entries)
            self._writer.flush()

    # --- Results ----------------------------------------------------------------------

    @property
    def energy(self) -> Energy:
        """Energy of all training steps so far, as of one long step.

        Raises:
            ValueError: Nothing was counted yet.
        """
        if not self.ledger.training.steps:
            raise ValueError("Nothing was counted yet: train a model with this callback first.")
        return self.ledger.combined().energy(self.table)

    def comparison(self) -> Comparison:
        """The same steps priced in other formats, see `tf_lns.energy.compare`.

        Raises:
            ValueError: Nothing was counted yet.
        """
        if not self.ledger.training.steps:
            raise ValueError("Nothing was counted yet: train a model with this callback first.")
        return compare(self.ledger.combined(), tables=[self.table])

    def report(self, console: Console | None = None) -> None:
        """Prints the energy of the run per layer and pass and per kind of operation.

        Args:
            console: Where to print; the terminal if None.
        """
        console = console or Console()
        energy = self.energy
        steps = sum(self.ledger.training.steps.values())
        console.print(
            f"{report.human_energy(energy.total_pj)} for {steps:,.0f} training steps of "
            f"{energy.samples:,} samples in all, {report.human_energy(energy.per_sample_pj)} "
            f"per sample; arithmetic only, table {self.table.name}.",
            highlight=False,
        )
        console.print(report.layer_table(energy), report.kind_table(energy))
        if self.compare:
            console.print(*report.comparison_tables(self.comparison()))
        for note in (*self.notes, *self.ledger.combined().notes):
            console.print(note, highlight=False, markup=False)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Energy of the run as JSON text, also written to a file if `path` is given."""
        return self.energy.to_json(path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Energy of the run as CSV text, also written to a file if `path` is given."""
        return self.energy.to_csv(path)


class EnergyCallback(EnergyCallbackCore, keras.callbacks.Callback):
    """Adds up what a run would have cost on the hardware of a table.

    The operations of each distinct step (shapes of the batch, what is trained) are counted
    once, see `tf_lns.energy.tally`; from then on steps are multiplied. Logs and history gain

    * `energy_j`: energy of the arithmetic of all training steps so far, in J;
    * `energy_per_sample_j`: the same per sample trained on;
    * `val_energy_j`, `val_energy_per_sample_j`: those of validation.

    They are computed, not measured, and mean nothing without the table. Callbacks that stand
    after this one see them: put `CSVLogger` behind it. `tensorboard --logdir` shows the
    account in the tab LNS ENERGY.

    Args:
        log_dir: Folder for TensorBoard and for the counters, from which a run that goes on
            after an interruption (`keras.callbacks.BackupAndRestore`) takes them up again.
            None keeps everything in memory.
        table: Name of a built-in table, path of a file, or an `EnergyTable`.
        batch: (inputs, targets) of one step: real data, on which the numerics of activations,
            errors and gradients are computed. Steps are counted by their own shapes.
        compare: Whether `report` also prices the counts in other formats.
        update_freq: `"epoch"`, or a number of steps after which counters are written to
            `log_dir` as well.
        numerics_freq: Number of epochs after which the numerics are written to `log_dir`:
            shares of saturated, underflowed and zero values per tensor, and a histogram.
            None for never.

    Raises:
        TypeError: An argument of a wrong type.
        ValueError: No such table, or a number out of range.

    Example:
        >>> energy = tf_lns.EnergyCallback("logs/lns")
        >>> model.fit(x, y, callbacks=[energy])
        >>> energy.report()
    """


def _frequency(name: str, value: Any, wanted: str, other: Any) -> Any:
    """A positive number, or the one other value that is allowed."""
    if value == other:
        return other
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"`{name}` must be {wanted} or a positive integer. Received: {name}={value!r}"
        )
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1. Received: {name}={value!r}")
    return value
