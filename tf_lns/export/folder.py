"""The folder of an export: written all or nothing, and checked to the last bit when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

MANIFEST = "manifest.json"
KIND = "tf_lns export"
VERSION = 1
"""Of the folder's layout; exports of a higher one are refused."""


class Folder:
    """Files of an export that is being written.

    Attributes:
        path: Where they are written.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, data: bytes) -> str:
        """Writes a file and notes its checksum; `name` is relative, with slashes."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        return name

    def seal(self, content: dict[str, Any]) -> None:
        """Writes the manifest: what it says, all checksums, and its own."""
        manifest = {"kind": KIND, "version": VERSION, **content, "files": self._files}
        manifest["sha256"] = _own_checksum(manifest)
        (self.path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def written_folder(directory: Any, overwrite: bool) -> Iterator[Folder]:
    """A folder to write to, which takes the place of `directory` once it is complete.

    Raises:
        FileExistsError: `directory` is there, and is not to be, or may not be, replaced.
    """
    target = target_of(directory)
    check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}-{os.getpid()}-partial")
    old = target.with_name(f".{target.name}-{os.getpid()}-old")
    beside.mkdir()
    try:
        yield Folder(beside)
        check_target(target, overwrite)  # writing may have taken long
        if target.exists():
            target.rename(old)
        try:
            beside.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def target_of(directory: Any) -> pathlib.Path:
    """Where a folder is, links followed."""
    return pathlib.Path(os.path.realpath(os.fspath(directory)))


def check_target(target: pathlib.Path, overwrite: bool) -> None:
    """Raises FileExistsError if an export must not be written to a path."""
    if not os.path.lexists(target):
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        own = {MANIFEST, *manifest["files"]} if manifest["kind"] == KIND else None
    except (OSError, ValueError, TypeError, KeyError):
        own = None
    if own is None:
        raise FileExistsError(
            f"`directory` is there and is no export of tf_lns, so nothing is written to it. "
            f"Received: directory={str(target)!r}. Name a new one."
        )
    if not overwrite:
        raise FileExistsError(
            f"`directory` holds an export already. Received: directory={str(target)!r}. "
            "Name a new one, or replace it with overwrite=True."
        )
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir()}
    if found - own:
        raise FileExistsError(
            f"`directory` holds files that are not of the export and would be lost: "
            f"{_few(sorted(found - own))}. Received: directory={str(target)!r}. Move them first."
        )


class Sealed:
    """Files of an export that was written.

    Attributes:
        path: The folder.
        manifest: What manifest.json says.
    """

    def __init__(self, directory: Any) -> None:
        self.path = pathlib.Path(os.fspath(directory))
        self._checked: set[str] = set()
        if not self.path.is_dir():
            raise FileNotFoundError(
                f"`directory` names no folder. Received: directory={str(self.path)!r}"
            )
        self.manifest = self._manifest()

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        if not path.is_file():
            raise ValueError(f"{str(self.path)!r} is no export of tf_lns: it has no {MANIFEST}.")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
            raise ValueError(f"{str(path)!r} is no manifest of an export of tf_lns.")
        version = manifest.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise ValueError(
                f"{str(path)!r} was written by a newer version of tf_lns: the export has format "
                f"version {version}, and this one reads up to {VERSION}. Upgrade."
            )
        if manifest.get("sha256") != _own_checksum(manifest):
            raise ValueError(
                f"{str(path)!r} is damaged: it does not match the checksum that it was written "
                "with."
            )
        return manifest

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            ValueError: It is missing, or not what was written.
        """
        self._checked.add(name)
        path = self.path / name
        about = self.manifest["files"].get(name)
        if about is None or ".." in pathlib.PurePosixPath(name).parts or name.startswith("/"):
            raise ValueError(f"{MANIFEST} in {str(self.path)!r} names no file {name!r} of its own.")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"The export lacks the file {str(path)!r}: {error}") from error
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise ValueError(
                f"The file {str(path)!r} is damaged: {len(data)} bytes that do not match the "
                f"checksum of the {about['bytes']} bytes that were written."
            )
        return data

    def check_rest(self) -> None:
        """Reads what has not been read yet, to see that it is whole."""
        for name in self.manifest["files"]:
            if name not in self._checked:
                self.read(name)


def _own_checksum(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _few(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
