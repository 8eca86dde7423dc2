"""Adds the compiled op library and the launcher to the wheel; all else is in pyproject.toml.

How the library is compiled is in custom_ops/build.py, nowhere else.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OPS_DIR = Path("tf_lns") / "ops"

# Set by the Makefile: it compiles in place right after an editable install, where
# the progress can be seen (pip hides what a build prints).
SKIP_OPS = os.environ.get("TF_LNS_SKIP_OPS") == "1"


def load_builder():
    path = ROOT / "custom_ops" / "build.py"
    spec = importlib.util.spec_from_file_location("tf_lns_build", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildOps(build_ext):
    """Compiles the ops in place of Python extensions."""

    def run(self):
        if SKIP_OPS:
            return
        builder = load_builder()
        base = ROOT if self.inplace else Path(self.build_lib).resolve()
        if not self.inplace:
            # build_py has copied the note of an in-place build: not that of this library.
            (base / OPS_DIR / "_build_info.py").unlink(missing_ok=True)
        try:
            builder.build_library(base / OPS_DIR)
        except builder.BuildError as error:
            raise SystemExit(f"\ntf_lns: {error}\n") from None

    def get_ext_filename(self, fullname):
        return str(OPS_DIR / "_lns_ops.so")

    def get_outputs(self):
        if SKIP_OPS:
            return []
        base = Path(self.build_lib) / OPS_DIR
        return [str(base / "_lns_ops.so"), str(base / "_build_info.py")]

    def get_output_mapping(self):
        return {}


class PlatformWheel(bdist_wheel):
    """Names the wheel py3-none-<platform>: the library calls no Python C API."""

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    # The launcher stands beside tf_lns when installed: it starts without importing that.
    packages=[
        *find_packages(include=["tf_lns", "tf_lns.*"], exclude=["tf_lns.launch"]),
        "tf_lns_launch",
    ],
    package_dir={"tf_lns_launch": "tf_lns/launch"},
    # Names an extension, so that setuptools knows the wheel depends on the platform.
    ext_modules=[Extension("tf_lns.ops._lns_ops", sources=[])],
    cmdclass={"build_ext": BuildOps, "bdist_wheel": PlatformWheel},
)
