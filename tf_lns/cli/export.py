"""`tf-lns export`: a saved model's codes, constants and test vectors for hardware."""

from __future__ import annotations

import argparse
import json
import pathlib
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
        "layers, formats and scales, and the constants of its datapath into a folder.",
        allow_abbrev=False,
    )
    models.add_arguments(parser)
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write")
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


def _datapath(text: str) -> dict[str, Any]:
    from tf_lns.datapath import Datapath

    try:
        return Datapath.get(json.loads(text)).get_config()
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{error}. Received: {text!r}") from error


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    models.check_file(arguments.model)
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
        **{key: manifest[key] for key in ("weights", "variables", "units", "files")},
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
    lines.append(
        f"Wrote {result.directory}: {len(found['files']) + 1} files, {human_bytes(found['bytes'])}"
    )
    return "\n".join(lines)
