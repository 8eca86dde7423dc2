"""What an operation is made of: the only place that says so.

`recipe(kind, formats)` takes an operation of `records.KINDS` apart into primitives that a table
prices: adders, multipliers, two-way multiplexers. An LNS multiply-accumulate is the datapath of
`tf_lns.Datapath` at its defaults: exponents are added, the fraction of the sum is looked up in a
table of γ entries, the entry is shifted to its place and accumulated in 24 bits.

Where hardware can reasonably differ, a part says so: how often it is needed at least, probably
and at most, or the cheaper format of the low estimate.
"""

from __future__ import annotations

import dataclasses
import math

from tf_lns.energy.records import KINDS
from tf_lns.energy.table import FLOATS
from tf_lns.formats import LNSFormat

FRACTION_BITS = 8
"""Fraction bits of an entry of the table 2^(r/γ); an entry has one bit more."""

ACCUMULATOR_BITS = 24
"""Width of the integer accumulator of an LNS product, and of a float's significand."""

LARGEST_TREE = 1024
"""Multiplexers of a constant table beyond which it is a memory: the two cost the same there."""

PARTS = (
    "mac",
    "multiply",
    "exponent add",
    "table read",
    "shift",
    "accumulate",
    "conversion",
    "element-wise",
)
"""Names of parts, the keys of `Energy.by_part`; `mac` is one that a table prices whole."""


class UnknownFormatError(ValueError):
    """No recipe for a format, e.g. `complex64`; `str` names it."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Some primitives of one kind inside an operation.

    Attributes:
        name: One of `PARTS`.
        op: Primitive, one of `tables.OPS`.
        format: Its format.
        numbers: How many, (low, middle, high); the middle is the estimate.
        low_format: Format of the low estimate where it differs, or "".
        otherwise: What to take where the table has no such row.
    """

    name: str
    op: str
    format: str
    numbers: tuple[float, float, float] = (1.0, 1.0, 1.0)
    low_format: str = ""
    otherwise: Part | None = None


def bits(format: str) -> int:
    """Width of a number of this format in bits.

    Raises:
        UnknownFormatError: No such format.
    """
    if format in FLOATS:
        return FLOATS[format][1]
    if format == "bool":
        return 1
    for prefix in ("uint", "int"):
        if format.startswith(prefix) and format[len(prefix) :].isdecimal():
            return int(format[len(prefix) :])
    if is_lns(format):
        return LNSFormat.parse(format).bits
    raise UnknownFormatError(format)


def is_lns(format: str) -> bool:
    """Whether it is a format of this number system, such as `"lns8:8"`."""
    return format.startswith("lns")


def is_low_bit(format: str) -> bool:
    """Whether products take it only after a conversion: LNS, fp8, integers up to 8 bits."""
    integer = format != "bool" and _is_integer(format)
    return is_lns(format) or format == "fp8" or (integer and bits(format) <= 8)


def operand_format(first: str, second: str) -> str:
    """The format in which a product of two formats is computed.

    Two LNS formats stay LNS (the wider); of two others the wider float, where bf16 and fp16
    meet in fp32; a float and an 8-bit format meet in the float; an integer or LNS number
    with fp8 or with each other in fp32.
    """
    pair = {first, second}
    if len(pair) == 1:
        return first
    if all(map(is_lns, pair)) or all(map(_is_integer, pair)):
        return max(pair, key=lambda f: (bits(f), f))
    wide = {f for f in pair if f in FLOATS and f != "fp8"}
    if "fp64" in wide:
        return "fp64"
    return wide.pop() if len(wide) == 1 else "fp32"


def label(kind: str, formats: tuple[str, ...]) -> str:
    """An operation in words: `"mac fp32 x fp32"`, `"encode fp32 to lns8:8"`."""
    return f"{kind} {(' x ' if kind == 'mac' else ' to ').join(formats)}"


def whole(kind: str, formats: tuple[str, ...]) -> tuple[str, ...]:
    """Formats under which a table may price the operation whole, the best first.

    A MAC of LNS formats is priced by a row of exactly these, `"lns8:8"`, else by the
    narrowest row `"lns8"`, ... that is wide enough; a conversion by a row of its low-bit
    format, a comparison of floats also by an integer one of that width.
    """
    if kind == "mac":
        format = operand_format(*formats)
        if not is_lns(format):
            return (format,)
        exact = (format,) if formats[0] == formats[1] else ()
        return exact + tuple(f"lns{width}" for width in range(bits(format), 17))
    if kind == "compare":
        return (formats[0], f"int{bits(formats[0])}")
    return (formats[0] if kind == "decode" else formats[-1],)


def recipe(kind: str, formats: tuple[str, ...]) -> tuple[Part, ...]:
    """The primitives of one operation.

    Args:
        kind: One of `records.KINDS`.
        formats: Names of formats, as in `records.Record`.

    Raises:
        ValueError: No such kind, or the wrong number of formats.
        UnknownFormatError: A format that no recipe knows.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: kind={kind!r}")
    wanted = 2 if kind in ("mac", "encode", "requantize", "decode") else 1
    if len(formats) != wanted:
        raise ValueError(
            f"`formats` of {kind} must be {wanted} name{'s'[: wanted - 1]}. "
            f"Received: formats={formats!r}"
        )
    if kind == "lookup":
        return (_lookup(*formats),)
    for format in formats:
        bits(format)
    if kind == "mac":
        return _mac(*formats)
    if kind == "requantize":
        return _requantize(*formats)
    if kind == "encode":
        return _encode(*formats)
    if kind == "decode":
        return _decode(*formats)
    return _element(kind, formats[0])


def _mac(first: str, second: str) -> tuple[Part, ...]:
    """One product and its place in the sum.

    LNS: the exponents (without sign, brought to the larger γ by a fixed shift) are added; the
    sign is one XOR gate, not counted. INT8: into an int32 sum. fp8, bf16 and fp16: into an
    fp32 sum, as tensor cores do, or at the least an fp16 one. fp32, fp64: into a sum of
    their own format.
    """
    format = operand_format(first, second)
    if is_lns(format):
        a, b = LNSFormat.parse(first), LNSFormat.parse(second)
        gamma = max(a.base_factor, b.base_factor)
        exponents = [f.max_exponent * (gamma // f.base_factor) for f in (a, b)]
        # A sum is one bit wider than its terms; an exponent of 0 still takes a wire.
        width = max(1, max(exponents).bit_length()) + 1
        octaves = sum(exponents) // gamma
        return (
            Part("exponent add", "add", f"int{width}"),
            _table("table read", gamma, FRACTION_BITS + 1),
            _shifter("shift", ACCUMULATOR_BITS, min(ACCUMULATOR_BITS, octaves + 1)),
            Part("accumulate", "add", f"int{ACCUMULATOR_BITS}"),
        )
    if _is_integer(format):
        return (
            Part("multiply", "multiply", _integer(format)),
            Part("accumulate", "add", f"int{max(32, bits(format))}"),
        )
    if format in ("fp32", "fp64"):
        return (Part("multiply", "multiply", format), Part("accumulate", "add", format))
    return (
        Part("multiply", "multiply", format),
        Part("accumulate", "add", "fp32", low_format="fp16"),
    )


def _encode(source: str, target: str) -> tuple[Part, ...]:
    """A conversion from a float or an accumulator.

    LNS: the leading one is brought to the top (at the least by nothing: a float is normal
    already), the significand is looked up among the γ bounds and compared, and the scale's
    exponent is added. fp8, bf16, fp16: the scale, a power of two, is added to the exponent,
    the significand is shifted where the result is subnormal, and rounding is an add. Integers:
    multiplied by the scale (at the least a power of two, an add), shifted, rounded by an add.
    """
    name = "conversion"
    if is_lns(target):
        format = LNSFormat.parse(target)
        parts = [_shifter(name, ACCUMULATOR_BITS, ACCUMULATOR_BITS, low=0.0)]
        if format.base_factor > 1:
            parts += [
                _table(name, format.base_factor, FRACTION_BITS + 1),
                Part(name, "add", f"int{FRACTION_BITS + 1}"),
            ]
        return (*parts, Part(name, "add", f"int{format.bits}"))
    if _is_integer(target):
        width = bits(target)
        return (
            Part(name, "multiply", _as_float(source), (0.0, 1.0, 1.0)),
            _shifter(name, ACCUMULATOR_BITS, ACCUMULATOR_BITS),
            Part(name, "add", f"int{width}"),
        )
    if bits(target) >= bits(source):
        return ()
    significand, width = FLOATS[target]
    return (
        Part(name, "add", "int8"),
        _shifter(name, significand, significand),
        Part(name, "add", f"int{width}"),
    )


def _requantize(source: str, target: str) -> tuple[Part, ...]:
    """A change of LNS format: one add that rounds, one that counts from the new top.

    The shift by the ratio of both γ is fixed, so it is wiring. At the least one add does both.
    """
    width = max(bits(source), bits(target))
    return (Part("conversion", "add", f"int{width}", (1.0, 2.0, 2.0)),)


def _decode(source: str, target: str) -> tuple[Part, ...]:
    """A conversion into a float or a fixed-point number.

    LNS: a table of γ entries with the target's significand; for a float one add makes the
    exponent, for an integer a shift puts the entry in its place. fp8 to a wider float is
    wiring. Integers: normalised by a shift, multiplied by the scale.
    """
    name = "conversion"
    if is_lns(source):
        gamma = LNSFormat.parse(source).base_factor
        if target in FLOATS:
            significand = FLOATS[target][0]
            return (_table(name, gamma, significand), Part(name, "add", "int8"))
        return (
            _table(name, gamma, FRACTION_BITS + 1),
            _shifter(name, bits(target), bits(target)),
        )
    if source in FLOATS:
        return ()
    return (
        _shifter(name, ACCUMULATOR_BITS, ACCUMULATOR_BITS),
        Part(name, "multiply", _as_float(target), (0.0, 1.0, 1.0)),
    )


def _lookup(format: str) -> Part:
    """A read of a table of constants, `"128x32"`."""
    entries, _, width = format.partition("x")
    if not (entries.isdecimal() and width.isdecimal() and int(entries)):
        raise UnknownFormatError(format)
    return _table("element-wise", int(entries), int(width))


def _element(kind: str, format: str) -> tuple[Part, ...]:
    """One element-wise operation.

    * add, multiply: the unit of that format; on LNS codes an integer adder either way;
    * compare: an integer adder as wide as the number, for floats order as integers do;
    * round: the significand is shifted to the binary point and one add rounds;
    * divide: Newton's iteration for 1/d from an 8-bit seed, n steps of two multiplications
      and one add (n = 1 for 16 bits and fewer, 2 for fp32, 3 for fp64), and one
      multiplication;
    * sqrt: the same for 1/sqrt(d), n steps of three and one, and one multiplication;
    * transcendental: range reduction and a polynomial of degree 7, 8 multiplications and 8
      adds; at the least degree 3 with a table (4 and 4), at most with a division (13 and 10),
      as tanh and the logistic function need;
    * random: three 32-bit XORs of an xorshift generator, each taken as an adder; at the
      least one (a shift register), at most a draw of Philox4x32-10, which TensorFlow
      executes: five 32-bit multiplications and ten adds.
    """
    name = "element-wise"
    if kind == "random":
        return (
            Part(name, "add", "int32", (1.0, 3.0, 10.0)),
            Part(name, "multiply", "int32", (0.0, 0.0, 5.0)),
        )
    if kind == "compare":
        return (Part(name, "add", f"int{bits(format)}"),)
    if kind in ("add", "multiply"):
        if is_lns(format):
            return (Part(name, "add", f"int{bits(format)}"),)
        return (Part(name, kind, format if format in FLOATS else _integer(format)),)
    format = _as_float(format)
    significand = FLOATS[format][0]
    if kind == "round":
        return (
            _shifter(name, significand, significand),
            Part(name, "add", f"int{significand}"),
        )
    steps = max(1.0, math.ceil(math.log2(significand / 8)))
    multiplies, adds = {
        "divide": ((2 * steps + 1,) * 3, (steps,) * 3),
        "sqrt": ((3 * steps + 1,) * 3, (steps,) * 3),
        "transcendental": ((4.0, 8.0, 13.0), (4.0, 8.0, 10.0)),
    }[kind]
    return (Part(name, "multiply", format, multiplies), Part(name, "add", format, adds))


def _table(name: str, entries: int, width: int) -> Part:
    """A read of a table of constants: a tree of `entries - 1` multiplexers per bit.

    Beyond `LARGEST_TREE` multiplexers the table is an 8 KB SRAM of 64-bit words, of whose read
    the bits that are needed are charged.
    """
    tree = Part(name, "select", f"int{width}", (entries - 1.0,) * 3)
    if (entries - 1) * width > LARGEST_TREE:
        tree = Part(name, "read", "sram-8k", (width / 64,) * 3, otherwise=tree)
    return Part(name, "lookup", f"{entries}x{width}", otherwise=tree)


def _shifter(name: str, width: int, positions: int, low: float | None = None) -> Part:
    """A barrel shifter: log2(positions) stages of one multiplexer per bit."""
    stages = float(math.ceil(math.log2(positions)))
    fewest = stages if low is None else low
    tree = Part(name, "select", f"int{width}", (fewest, stages, stages))
    once = (min(1.0, fewest), min(1.0, stages), min(1.0, stages))
    return Part(name, "shift", f"int{width}", once, otherwise=tree)


def _is_integer(format: str) -> bool:
    return format == "bool" or format.lstrip("u").startswith("int")


def _integer(format: str) -> str:
    """Unsigned integers and booleans as the signed integer of that width."""
    return f"int{bits(format)}"


def _as_float(format: str) -> str:
    """What is not a float is computed in fp32."""
    return format if format in FLOATS else "fp32"
