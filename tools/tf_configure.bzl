"""Makes the pip-installed TensorFlow, and the flags of build.py, known to bazel."""

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    hdrs = glob(["include/**"]),
    defines = {defines},
    includes = {includes},
)

cc_library(
    name = "libraries",
    srcs = glob(["lib/*.so*"]),
)
"""

def _tf_configure(repository_ctx):
    python = repository_ctx.os.environ.get("PYTHON", "python3")
    script = repository_ctx.path(Label("//:custom_ops/build.py"))
    result = repository_ctx.execute([python, script, "--describe"], timeout = 120)
    if result.return_code:
        fail("custom_ops/build.py --describe failed:\n" + result.stderr)
    facts = json.decode(result.stdout)

    repository_ctx.symlink(facts["include_dir"], "include")
    for flag in facts["libraries"]:
        name = flag[len("-l:"):]
        repository_ctx.symlink(facts["library_dir"] + "/" + name, "lib/" + name)
    repository_ctx.file("BUILD", _BUILD.format(
        defines = repr([flag[len("-D"):] for flag in facts["definitions"]]),
        includes = repr([
            "include" if subdir == "." else "include/" + subdir
            for subdir in facts["include_subdirs"]
        ]),
    ))
    repository_ctx.file("flags.bzl", "\n".join([
        "BASE_FLAGS = " + repr(facts["base_flags"]),
        "FOLDER_FLAGS = " + repr(facts["folder_flags"]),
        "INSTRUCTION_SETS = " + repr(facts["instruction_sets"]),
        "",
    ]))

tf_configure = repository_rule(
    implementation = _tf_configure,
    environ = ["PYTHON"],
    local = True,
    doc = "Runs custom_ops/build.py with $PYTHON (default python3) to learn the flags.",
)
