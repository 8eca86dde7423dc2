#!/usr/bin/env bash
# Builds the op library and the C++ tests with bazel, runs the tests, and loads the
# library into TensorFlow. Works offline with Debian's package:
#
#     apt-get install bazel-bootstrap
set -euo pipefail
cd "$(dirname "$0")/.."

export PYTHON=${PYTHON:-.venv/bin/python}
case $PYTHON in
  */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;;
esac

if ! command -v bazel >/dev/null; then
  echo "check_bazel: no bazel here (Debian: apt-get install bazel-bootstrap)" >&2
  exit 2
fi

# Bazel 4 reads its built-in rules through repositories that it would download (the
# version of @rules_cc that Debian packages is too new for it). Names are all it needs.
stubs=$PWD/build/bazel
stub() {
  local repository=$1 folder=$2 rule
  shift 2
  mkdir -p "$stubs/$repository/$folder"
  echo "workspace(name = \"$repository\")" >"$stubs/$repository/WORKSPACE"
  echo 'exports_files(["defs.bzl"])' >"$stubs/$repository/$folder/BUILD"
  for rule in "$@"; do echo "$rule = native.$rule"; done >"$stubs/$repository/$folder/defs.bzl"
  options+=("--override_repository=$repository=$stubs/$repository")
}
options=(--force_pic --spawn_strategy=local --noshow_progress)
stub rules_cc cc cc_binary cc_import cc_library cc_proto_library cc_test cc_toolchain \
  cc_toolchain_suite objc_library
stub rules_java java java_binary java_import java_library java_plugin \
  java_runtime java_test java_toolchain
stub remote_coverage_tools .
for tool in coverage_report_generator lcov_merger; do
  echo "filegroup(name = \"$tool\", visibility = [\"//visibility:public\"])"
done >"$stubs/remote_coverage_tools/BUILD"

bazel build "${options[@]}" //:_lns_ops.so //:all
bazel test "${options[@]}" --test_output=errors //:all
TF_CPP_MIN_LOG_LEVEL=3 "$PYTHON" - <<'PYTHON_CODE'
import tensorflow as tf

ops = [n for n in dir(tf.load_op_library("bazel-bin/_lns_ops.so")) if n.startswith("lns_")]
assert ops, "no op in the library"
print(f"check_bazel: the library loads and defines {len(ops)} names")
PYTHON_CODE
echo "check_bazel: library built, tests passed"
