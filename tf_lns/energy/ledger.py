"""How many steps of which signature were executed, kept over interruptions."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from tf_lns.energy.counts import Tally
from tf_lns.energy.table import EnergyTable


@dataclasses.dataclass
class Account:
    """Steps of one kind, training or validation.

    Attributes:
        steps: Executed steps by signature, see `Tally.signature`.
        samples: Samples in them.
    """

    steps: dict[str, float] = dataclasses.field(default_factory=dict)
    samples: int = 0

    def add(self, signature: str, steps: float, samples: int) -> None:
        """Adds executed steps."""
        self.steps[signature] = self.steps.get(signature, 0) + steps
        self.samples += samples

    def joules(self, prices: dict[str, float]) -> float:
        """Energy in J, given that of one step of each signature in pJ."""
        return (
            math.fsum(n * prices[name] for name, n in self.steps.items() if name in prices) * 1e-12
        )


class Ledger:
    """Counters since the start of training, and the counts of one step of each signature.

    With a file, a run that is interrupted and goes on from a backup finds its counters there,
    by the number of iterations of the optimizer.

    Attributes:
        training: Steps of training.
        validation: Steps of validation.
        tallies: Counts of one step by signature.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self._path = pathlib.Path(path) if path is not None else None
        self.clear()

    def clear(self) -> None:
        """Starts at zero."""
        self.training, self.validation = Account(), Account()
        self.tallies: dict[str, Tally] = {}

    # --- Energy ----------------------------------------------------------------------

    def prices(self, table: EnergyTable) -> dict[str, float]:
        """Energy of one step in pJ by signature."""
        return {name: tally.energy(table).total_pj for name, tally in self.tallies.items()}

    def combined(self) -> Tally:
        """The counts of all training steps so far as those of one long step."""
        names = [name for name in self.training.steps if name in self.tallies]

        def scaled(attribute: str, field: str) -> tuple:
            sums: dict[Any, float] = collections.defaultdict(float)
            for name in names:
                for entry in getattr(self.tallies[name], attribute):
                    key = dataclasses.replace(entry, **{field: 0})
                    sums[key] += getattr(entry, field) * self.training.steps[name]
            return tuple(dataclasses.replace(key, **{field: n}) for key, n in sums.items())

        notes = [note for name in names for note in self.tallies[name].notes]
        return Tally(
            records=scaled("records", "count"),
            traffic=scaled("traffic", "elements"),
            operands=scaled("operands", "elements"),
            unpriced=scaled("unpriced", "count"),
            samples=max(1, self.training.samples),
            signature="; ".join(names),
            notes=tuple(dict.fromkeys(notes)),
            period="run",
            name=next((self.tallies[name].name for name in names), ""),
        )

    # --- File ------------------------------------------------------------------------

    def know(self, signature: str, tally: Tally) -> None:
        """Keeps the counts of one step of a signature."""
        if signature not in self.tallies:
            self.tallies[signature] = tally
            self._append({"signature": signature, "tally": tally.to_dict()})

    def save(self, iterations: int) -> None:
        """Notes the counters as they are after so many iterations of the optimizer."""
        self._append(
            {
                "iterations": iterations,
                "training": dataclasses.asdict(self.training),
                "validation": dataclasses.asdict(self.validation),
            }
        )

    def _append(self, entry: dict[str, Any]) -> None:
        if self._path is None:
            return
        line = json.dumps(entry, separators=(",", ":"))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def resume(self, iterations: int) -> str | None:
        """Takes up the counters that the file has of a run with so many iterations.

        Args:
            iterations: Of the optimizer, now. With 0 a new run begins, and with it the file.

        Returns:
            What had to be assumed, as a sentence; None where the counters are exact.
        """
        if self.training.steps:  # this object has counted before and goes on
            return None
        entries = self._read() if iterations else []
        self.clear()
        states = [e for e in entries if e.get("iterations", math.inf) <= iterations]
        tallies = [e for e in entries if "tally" in e]
        self._rewrite([*tallies, *states])
        if not iterations:
            return None
        if not states:
            return f"The {iterations} steps before this run were not counted."
        for entry in tallies:
            self.tallies[entry["signature"]] = Tally.from_dict(entry["tally"])
        for name in ("training", "validation"):
            account = getattr(self, name)
            account.steps.update(states[-1][name]["steps"])
            account.samples = states[-1][name]["samples"]
        return self._extrapolate(iterations - states[-1]["iterations"])

    def _extrapolate(self, missed: int) -> str | None:
        """Adds steps that were executed after the last note."""
        done = sum(self.training.steps.values())
        if not missed or not done:
            return None
        samples = round(missed * self.training.samples / done)
        for name, n in list(self.training.steps.items()):
            self.training.add(name, missed * n / done, 0)
        self.training.samples += samples
        return f"{missed} steps after the last note were taken to be like those before."

    def _read(self) -> list[dict[str, Any]]:
        """Entries of the file; a line that was cut off is left out."""
        if self._path is None or not self._path.is_file():
            return []
        entries = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries

    def _rewrite(self, entries: list[dict[str, Any]]) -> None:
        """Leaves out of the file what was done after the backup, or by another run."""
        if self._path is None or not self._path.is_file():
            return
        lines = [json.dumps(entry, separators=(",", ":")) for entry in entries]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        temporary.replace(self._path)
