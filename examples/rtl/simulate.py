"""Run the SystemVerilog array over products of codes and compare every accumulator.

    python examples/rtl/simulate.py FOLDER [FOLDER ...]            # what `tf-lns export` wrote
    python examples/rtl/simulate.py --random 100000 --datapath '{"lut_bits": 1}'

Each folder holds the files that product.py describes. The exit code is 1 if a word differs.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

from product import Product, write_random

HERE = pathlib.Path(__file__).resolve().parent
UNITS = ("lns_term.sv", "saturating_accumulator.sv", "lns_mac.sv", "lns_array.sv")
SIMULATORS = {"icarus": "iverilog", "verilator": "verilator"}


class Result(NamedTuple):
    """What a simulation found; it is right where the exit code and `differing` are 0."""

    differing: int
    words: int
    exit_code: int
    log: str

    @property
    def passed(self) -> bool:
        return self.exit_code == 0 and self.differing == 0


def available() -> list[str]:
    """Simulators that are installed."""
    return [name for name, program in SIMULATORS.items() if shutil.which(program)]


def simulate(folder, simulator: str = "icarus", netlist=None, timeout: float = 3600) -> Result:
    """Compiles the testbench for a folder and runs it, for at most `timeout` seconds.

    With `netlist`, what area.py had yosys make of the array, instead of our units.
    """
    folder = pathlib.Path(folder).resolve()
    header = Product.read(folder).header()
    units = [netlist] if netlist else [HERE / name for name in UNITS]
    with tempfile.TemporaryDirectory() as build:
        build = pathlib.Path(build)
        (build / "product.svh").write_text(header)
        sources = [*map(str, units), str(HERE / "testbench.sv")]
        compile_, run = _commands(simulator, build, sources, ["NETLIST"] if netlist else [])
        done = subprocess.run(compile_, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(compile_)} failed:\n{done.stdout}{done.stderr}")
        done = subprocess.run(
            [*run, f"+folder={folder}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    log = done.stdout + done.stderr
    found = re.search(r"(\d+) of (\d+) words differ", log)
    if not found:
        raise RuntimeError(f"The testbench did not come to its end:\n{log}")
    return Result(int(found[1]), int(found[2]), done.returncode, log)


def _commands(simulator, build, sources, macros):
    """Command that compiles, and command that runs what it compiled."""
    macros = [f"-D{name}" for name in macros]
    if simulator == "icarus":
        program = build / "testbench.vvp"
        compile_ = ["iverilog", "-g2012", *macros, f"-I{build}", "-s", "testbench"]
        return [*compile_, "-o", str(program), *sources], ["vvp", "-n", str(program)]
    if simulator == "verilator":
        # Width warnings: formulas are assigned to words that hold them, without casts.
        compile_ = ["verilator", "--binary", "-Wno-WIDTH", *macros, f"-I{build}", "-Mdir"]
        program = build / "verilated"
        return (
            [*compile_, str(program), "--top-module", "testbench", *sources],
            [str(program / "Vtestbench")],
        )
    raise ValueError(f"`simulator` must be one of {list(SIMULATORS)}. Received: {simulator!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER")
    parser.add_argument("--simulator", choices=sorted(SIMULATORS), default="icarus")
    random = parser.add_argument_group("random codes instead of folders")
    random.add_argument("--random", type=int, metavar="OUTPUTS", help="how many outputs")
    random.add_argument("--k", type=int, default=20, help="terms of each output (20)")
    random.add_argument("--formats", nargs=2, default=["lns8:8", "lns8:8"], metavar=("A", "B"))
    random.add_argument("--datapath", type=json.loads, default={}, help="arguments, as JSON")
    random.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.folders) == (args.random is not None):
        parser.error("name folders, or --random OUTPUTS")

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        if args.random is not None:
            write_random(folder, args.random, args.k, args.formats, args.datapath, args.seed)
        for name in args.folders or [folder]:
            results[name] = simulate(name, args.simulator)
            print(f"{name}:\n{results[name].log}", end="")
    return 0 if all(result.passed for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
