"""What starts without TensorFlow: installed as a package of its own, `tf_lns_launch`.

`import tf_lns` imports TensorFlow, which takes seconds and prints, and so does any module in
it. Most of the command line has no need of that.
"""

from __future__ import annotations

import importlib.util
import sys


def main(argv: list[str] | None = None) -> int:
    """Runs `tf_lns.cli.main`.

    The packages whose own code needs TensorFlow are put in place without running that;
    `tf_lns.cli.library` runs it when a model is loaded.
    """
    for name in ("tf_lns", "tf_lns.energy"):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ImportError(f"{name} is not installed")
            sys.modules[name] = importlib.util.module_from_spec(spec)
    from tf_lns.cli import main as run

    return run(argv)
