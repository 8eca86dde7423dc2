"""What all tests share: a quiet TensorFlow, fixed seeds, and fresh processes."""

import os
import subprocess
import sys
import textwrap

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(autouse=True)
def _independent():
    """The same random numbers and layer names for each test, in whatever order they run."""
    keras = sys.modules.get("keras")  # tests that do without it need not load it
    if keras is not None:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
    return


@pytest.fixture
def run_python(tmp_path):
    """Runs Python source in a new process; returns its result, output as text.

    The process starts in an empty folder and sees the checkout. `env` adds variables; unless
    `check` is False, an exit code other than 0 fails the test with the output.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def run(source, *arguments, env=None, check=True, timeout=300):
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": root, **(env or {})},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check:
            assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result

    return run
