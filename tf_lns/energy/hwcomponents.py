"""A table computed by the package hwcomponents (optional, Python >= 3.12).

`EnergyTable.load("hwcomponents")` takes the integer adder, multiplier and comparator of the
Aladdin simulator from `hwcomponents-library`, scaled to 45 nm by that package. It has no
floating-point units: fp8, bf16, fp16 and fp32 products are unpriced under it.
"""

from __future__ import annotations

import functools
import importlib.metadata

from tf_lns.energy.table import EnergyTable, Row

NODE_NM = 45


@functools.cache
def table(node_nm: float = NODE_NM) -> EnergyTable:
    """Energies of the Aladdin components at a process node.

    Args:
        node_nm: Process node in nanometres, to which the package scales its 40 nm data.

    Returns:
        A table named `hwcomponents`, with the node in its notes.

    Raises:
        ImportError: The packages are not installed, or cannot be used.
    """
    try:
        from hwcomponents_library.library import aladdin
    except ImportError as error:
        raise ImportError(
            "The table hwcomponents needs Python >= 3.12 and the packages hwcomponents, "
            "hwcomponents-library and hwcomponents-neurosim: pip install tf-lns[hwcomponents]. "
            f"The import said: {error}"
        ) from error
    metres = node_nm * 1e-9
    adder = 1e12 * float(aladdin.AladdinAdder(metres, 32).add().energy) / 32
    comparator = 1e12 * float(aladdin.AladdinComparator(metres, 32).compare().energy) / 32
    multiplier = 1e12 * float(aladdin.AladdinMultiplier(metres, width=32).multiply().energy) / 1024
    linear = "The 32-bit unit of Aladdin, proportional to the width, as the package scales it."
    return EnergyTable(
        name="hwcomponents",
        title=f"Aladdin components of hwcomponents, {node_nm:g} nm",
        source={
            "citation": "Y. S. Shao et al., Aladdin, ISCA 2014, in hwcomponents-library "
            + importlib.metadata.version("hwcomponents-library"),
            "year": 2014,
            "doi": "10.1109/ISCA.2014.6853196",
            "url": "https://github.com/Accelergy-Project/hwcomponents",
            "read": "Computed by the package, which scales 40 nm data to the node.",
        },
        rows=(
            _rule("add", linear, pj_per_bit=(adder,) * 3),
            _rule("compare", linear, pj_per_bit=(comparator,) * 3),
            _rule(
                "multiply",
                "The 32-bit multiplier of Aladdin, quadratic in the width, as the package "
                "scales it.",
                pj_per_bit_squared=(multiplier,) * 3,
            ),
            _rule(
                "select",
                "A two-way multiplexer per bit as a share of an adder bit, as in the table "
                "horowitz-45nm: 7/16, low 6/28, high 1.",
                pj_per_bit=(adder * 6 / 28, adder * 7 / 16, adder),
            ),
        ),
        node_nm=node_nm,
        notes=(
            "No floating-point units and no memories: what needs them is unpriced.",
            "An 8-bit multiplier costs about four times that of horowitz-45nm: never mix both.",
        ),
    )


def _rule(
    op: str,
    rule: str,
    pj_per_bit: tuple[float, float, float] = (0.0, 0.0, 0.0),
    pj_per_bit_squared: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Row:
    return Row(
        op,
        family="int",
        pj_per_bit=pj_per_bit,
        pj_per_bit_squared=pj_per_bit_squared,
        origin="derived",
        rule=rule,
    )
