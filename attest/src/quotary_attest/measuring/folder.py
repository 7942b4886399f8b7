# SPDX-License-Identifier: Apache-2.0
"""What of a model folder is measured: every file that the engine could load, by its path in the folder.

The rules are those of OpenSSF model-signing's file manifest, and one more: what git and download tools keep beside a
model is left out. Links to files are followed (a download cache is made of them); links to folders, and what is
neither file nor folder, are refused: an engine could read through them what nobody measured.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from quotary_attest.measuring.errors import MeasureError

SIGNATURE_NAME: Final = "model.sig"
"""Where OpenSSF model-signing puts a folder's signature, relative to it."""

IGNORED: Final = frozenset(
    (".git", ".gitattributes", ".github", ".gitignore", ".cache/huggingface", SIGNATURE_NAME)
)
"""Paths in a model folder that are not measured, with all below them."""

MAX_FILES: Final = 100_000

_WEIGHTS: Final = (
    ".safetensors",
    ".gguf",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".npz",
    ".h5",
    ".msgpack",
)
_TOKENIZER: Final = frozenset(
    (
        "added_tokens.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    )
)
_TEMPLATES: Final = ("chat_template", "additional_chat_templates/")
_CONFIGURATION: Final = frozenset(
    (
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "params.json",
    )
)


def model_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files of a model folder, as name and path, ordered by the names' bytes.

    Raises:
        MeasureError: there is none, too many, one of a kind or with a name that cannot be measured.
    """
    found = sorted(_walk(folder, ""), key=lambda item: os.fsencode(item[0]))
    if not found:
        raise MeasureError(f"there is no file to measure in {folder}")
    for name, _ in found:
        check_file_name(name)
    return found


def check_file_name(name: str) -> None:
    """Refuse a name that a manifest could not hold unescaped. Raises MeasureError."""
    if "\n" in name or "\\" in name:
        raise MeasureError(f"the file name {name!r} holds a newline or backslash")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise MeasureError(f"the file name {name!r} is not utf-8") from None


def _walk(folder: Path, inside: str) -> Iterator[tuple[str, Path]]:
    count = 0
    pending = [(folder, inside)]
    while pending:
        here, prefix = pending.pop()
        for entry in _entries(here):
            name = prefix + entry.name
            if name in IGNORED:
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append((here / entry.name, name + "/"))
                continue
            _check_kind(entry, folder / name)
            count += 1
            if count > MAX_FILES:
                raise MeasureError(f"{folder} holds more than {MAX_FILES} files")
            yield name, here / entry.name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise MeasureError(f"cannot read {folder}: {(error.strerror or 'it failed').lower()}") from error


def _check_kind(entry: os.DirEntry[str], path: Path) -> None:
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {(error.strerror or 'it failed').lower()}") from error
    if stat.S_ISDIR(mode):
        raise MeasureError(
            f"{path} is a link to a folder",
            hint="put the folder itself in the model folder, or measure it as a model",
        )
    if not stat.S_ISREG(mode):
        raise MeasureError(f"{path} is neither a file nor a folder")


def part_of(name: str) -> str:
    """Return which part of a model a file is, by its name: `weights`, `tokenizer`, `chat_template`, `adapter`,
    `configuration`, or `other`."""
    base = name.rpartition("/")[2]
    if base.startswith("adapter_"):
        return "adapter"
    if name.startswith(_TEMPLATES) or base.startswith("chat_template"):
        return "chat_template"
    if (
        base in _TOKENIZER
        or base.startswith(("tokenizer", "sentencepiece"))
        or base.endswith((".model", ".tiktoken"))
    ):
        return "tokenizer"
    if base in _CONFIGURATION:
        return "configuration"
    return "weights" if base.endswith(_WEIGHTS) or ".safetensors." in base else "other"
