"""`tf-lns export`: a saved model's codes, constants and test vectors for hardware."""

from __future__ import annotations

import argparse
import json
import pathlib
import zipfile
from typing import Any

from tf_lns.cli import library, models
from tf_lns.cli.console import InputError, output, plain, working


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "export",
        parents=[common],
        help="codes, constants and test vectors of a model, for hardware",
        description="Writes a model's codes (.npz and .hex for $readmemh), a manifest with "
        "layers, formats and scales, the constants of its datapath, and test vectors of each layer "
        "into a folder.",
        allow_abbrev=False,
    )
    models.add_arguments(parser)
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--vectors",
        type=_count,
        default=0,
        metavar="N",
        help="test vectors of each layer: operands, accumulators and outputs for N samples",
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="samples, the first N of which are taken: .npy, or .npz with an array per input; "
        "without it, random ones",
    )
    parser.add_argument(
        "--datapath",
        type=_datapath,
        metavar="JSON",
        help="arguments of tf_lns.Datapath, such as '{\"lut_bits\": 1}'; {} for the defaults; "
        "without it, the datapath that the model was trained for, if any",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of samples, 0 or more. Received: {text!r}")
    return int(text)


def _datapath(text: str) -> dict[str, Any]:
    from tf_lns.datapath import Datapath

    try:
        return Datapath.get(json.loads(text)).get_config()
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{error}. Received: {text!r}") from error


def _samples(path: str | None, model: Any) -> Any:
    """The arrays of a file, as the model takes them; None without a file."""
    if path is None:
        return None
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"--data {path}: no .npy or .npz file of numbers: {error}") from error
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    inputs = getattr(model, "input_names", None) or [x.name for x in getattr(model, "inputs", [])]
    if set(arrays) != set(inputs):
        raise InputError(
            f"--data {path} must hold an array for each input, {inputs}, or a single one. "
            f"Received: {list(arrays)}"
        )
    return arrays if isinstance(model.input, dict) else [arrays[name] for name in inputs]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    models.check_file(arguments.model)
    if arguments.data is not None and not arguments.vectors:
        raise InputError("--data is for test vectors: say how many with --vectors N")
    with working("starting TensorFlow", arguments.traceback) as say:
        library.load()
        say(f"loading {pathlib.Path(arguments.model).name}")
        model = models.load(arguments.model, arguments.imports, arguments.unsafe, compile=False)
        say(f"writing {arguments.to}")
        from tf_lns.export import export_model

        try:
            result = export_model(
                model,
                arguments.to,
                vectors=arguments.vectors,
                data=_samples(arguments.data, model),
                datapath=arguments.datapath,
                overwrite=arguments.overwrite,
            )
        except FileExistsError as error:
            text = (
                str(error)
                .replace("`directory`", arguments.to)
                .replace("overwrite=True", "--overwrite")
            )
            raise InputError(text) from error
        except (TypeError, ValueError, OSError) as error:
            raise InputError(f"{arguments.model} cannot be exported: {plain(error)}") from error
    if arguments.json:
        print(json.dumps(_described(result), indent=2))
    else:
        output().print(_text(result), markup=False)
    return 0


def _described(result: Any) -> dict[str, Any]:
    """What was written, without the model's own description."""
    manifest = result.manifest
    return {
        "directory": str(result.directory),
        "bytes": sum(about["bytes"] for about in manifest["files"].values()),
        **{key: manifest[key] for key in ("weights", "variables", "units", "vectors", "files")},
    }


def _text(result: Any) -> str:
    from tf_lns.summary import human_bytes

    found = _described(result)
    codes = sum(weight.codes.size for weight in result.weights.values())
    lines = [
        f"{result.manifest['model']['name']}: {len(result.weights)} weights with {codes:,} codes, "
        f"{len(result.variables)} float variables"
    ]
    lines += [str(result.datapath)] if result.datapath is not None else []
    lines += _about_vectors(result)
    lines.append(
        f"Wrote {result.directory}: {len(found['files']) + 1} files, {human_bytes(found['bytes'])}"
    )
    return "\n".join(lines)


def _about_vectors(result: Any) -> list[str]:
    about = result.manifest["vectors"]
    if not about["samples"]:
        return []
    sums = sum(product.accumulators.size for product in result.vectors.values())
    lines = [
        f"{len(result.vectors)} products of {about['samples']} samples ({about['data']}) with "
        f"{sums:,} accumulators"
    ]
    return lines + [f"left out: {left['layer']}: {left['reason']}" for left in about["left_out"]]
