"""`Tally`: the counts of one step, which any table can price."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_lns.energy.price import Energy, price
from tf_lns.energy.records import KINDS, PASSES, Operand, Record, Traffic, Unpriced
from tf_lns.energy.table import EnergyTable

VERSION = 1
"""Version of `Tally.to_dict`."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """Operations, memory traffic and unknown operations of one step; see `tally`.

    Attributes:
        records: What is executed, by layer, pass, kind and formats.
        traffic: Elements between memory and arithmetic.
        operands: Distinct elements that enter products, by role.
        unpriced: Executed operations that no rule of the counter knows.
        samples: Samples in the batch.
        signature: Shapes of the batch and what is trained, as text; equal signatures
            mean equal counts.
        notes: What was assumed while counting, in sentences.
        name: The model's name.
        period: What was counted: `"step"`, or `"run"` for all steps of a training run.
    """

    records: tuple[Record, ...]
    traffic: tuple[Traffic, ...] = ()
    operands: tuple[Operand, ...] = ()
    unpriced: tuple[Unpriced, ...] = ()
    samples: int = 1
    signature: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""
    period: str = "step"

    def macs(self, pass_: str | None = None, layer: str | None = None) -> float:
        """Multiply-accumulates per step.

        Args:
            pass_: Only those of one pass: `"forward"`, `"error"`, `"gradient"`, `"update"`
                or `"other"`.
            layer: Only those of one layer, by its path or its name, and of what is inside it.

        Raises:
            ValueError: No such pass, or no such layer.
        """
        return self.count("mac", pass_, layer)

    def count(self, kind: str, pass_: str | None = None, layer: str | None = None) -> float:
        """Operations of one kind per step, see `records.KINDS`.

        Raises:
            ValueError: No such kind, pass or layer.
        """
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {list(KINDS)}. Received: kind={kind!r}")
        if pass_ is not None and pass_ not in PASSES:
            raise ValueError(f"`pass_` must be one of {PASSES} or None. Received: pass_={pass_!r}")
        inside = self._inside(layer)
        total = sum(
            r.count
            for r in self.records
            if r.kind == kind and pass_ in (None, r.pass_) and inside(r.layer)
        )
        return int(total) if total == int(total) else total

    def _inside(self, layer: str | None) -> Any:
        """Predicate of the paths that are a layer or inside it."""
        if layer is None:
            return lambda path: True
        layer = layer.strip("/")
        wanted = {p for p in self.layers if f"/{layer}/" in f"/{p}/"}
        if not wanted:
            known = ", ".join(self.layers[:20]) + (", ..." if len(self.layers) > 20 else "")
            raise ValueError(
                f"`layer` must be the name or path of a layer of the model: {known}. "
                f"Received: layer={layer!r}"
            )
        return wanted.__contains__

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers that execute or move something, in the order of the step."""
        paths = [r.layer for r in self.records] + [t.layer for t in self.traffic]
        return tuple(dict.fromkeys(path for path in paths if path))

    def energy(self, table: str | EnergyTable = "horowitz-45nm") -> Energy:
        """Prices the counts.

        Args:
            table: Name of a built-in table, path of a TOML or YAML file, or an `EnergyTable`.

        Raises:
            ValueError: No such table, or its file is wrong.
        """
        return price(self, table)

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain data for JSON; `from_dict` reads them back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("records", "traffic", "operands", "unpriced"):
            fields[name] = [list(dataclasses.astuple(entry)) for entry in fields[name]]
        return {"version": VERSION, **fields, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tally:
        """Reads what `to_dict` gave.

        Raises:
            ValueError: The data are of another version.
        """
        if data.get("version") != VERSION:
            raise ValueError(
                f"Counts of version {VERSION} are expected. Received: version="
                f"{data.get('version')!r}; count them again with this release of tf_lns."
            )
        fields = {k: v for k, v in data.items() if k != "version"}
        kinds: dict[str, Any] = {
            "records": Record,
            "traffic": Traffic,
            "operands": Operand,
            "unpriced": Unpriced,
        }
        for name, kind in kinds.items():
            fields[name] = tuple(
                kind(*(tuple(v) if isinstance(v, list) else v for v in entry))
                for entry in fields[name]
            )
        return cls(**{**fields, "notes": tuple(fields["notes"])})
