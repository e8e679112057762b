"""Tokens for the report page: what each of them reads, and numbers about them in a byte each.

Left out: tokenizers without ``tokenizer.json`` (transformers writes one for every tokenizer it can), and fetching one
from the hub: a report is made without a network, from what the run's machine has.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer

from rlreason import models

NULL = 255
"""The byte that stands for "not known"."""


@dataclass(frozen=True)
class Quantised:
    """Numbers as bytes: 0 to 254 by the square root of their size, so that small ones keep more digits; ``NULL`` is
    NaN.

    Unsigned, ``q`` stands for ``scale * (q / 254) ** 2``; signed, for ``± scale * ((q - 127) / 127) ** 2``.
    """

    q: npt.NDArray[np.uint8]
    scale: float
    signed: bool


def quantise(values: npt.NDArray[np.floating[Any]], *, signed: bool) -> Quantised:
    """``values`` of shape (T,) as bytes. At x the error is at most ``sqrt(x * scale) / n + scale / (4 * n * n)`` with
    ``scale`` the largest size and ``n`` 254, or 127 if signed. Unsigned, what is below 0 becomes 0."""
    there = np.isfinite(values)
    known = np.where(there, values, 0.0)
    size = np.abs(known) if signed else np.maximum(known, 0.0)
    scale = float(size.max(initial=0.0))
    root = np.sqrt(size / scale) if scale > 0 else np.zeros_like(size)
    codes = 127 + np.round(np.copysign(127 * root, known)) if signed else np.round(254 * root)
    return Quantised(np.where(there, codes, NULL).astype(np.uint8), scale, signed)


def find_tokenizer(run: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a run: its newest checkpoint's, else that of the model it began with, as far as it is on this
    machine. Raises FileNotFoundError, saying where it looked."""
    for checkpoint in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        if (checkpoint / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    model = config.get("model") or manifest.get("model") or {}
    path = str(model.get("path") or "")
    if not path:
        raise FileNotFoundError(f"no checkpoint in {run} has a tokenizer.json, and nothing names the model")
    try:
        return load_tokenizer(path, model.get("revision"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no checkpoint in {run} has a tokenizer.json; its model: {error}") from error


def load_tokenizer(path: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a model: a folder, ``embedded``, ``tiny``, or a hub id that was downloaded before. Raises
    FileNotFoundError."""
    if path == models.TINY:
        with tempfile.TemporaryDirectory(prefix="rlreason-tiny-") as folder:
            models.build_tiny(Path(folder))
            return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    file = (models.embedded_folder() if path == models.EMBEDDED else Path(path)) / "tokenizer.json"
    if not file.is_file() and path.count("/") <= 1 and not path.startswith((".", "/", "~")):
        cached = try_to_load_from_cache(path, "tokenizer.json", revision=revision)
        file = Path(cached) if isinstance(cached, str) else file
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no tokenizer.json, or is not on this machine")
    return Tokenizer.from_file(str(file))


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[bytes]:
    """The UTF-8 bytes that each id stands for. A character can begin in one token and end in another, so only bytes
    laid end to end, and then decoded, give back a text."""
    spec = json.loads(tokenizer.to_str())
    kinds = _kinds(spec.get("decoder"))
    whole = {token["id"]: token["content"] for token in spec.get("added_tokens", [])}
    found = []
    for token in ids:
        text = tokenizer.id_to_token(token)
        if token in whole:
            found.append(whole[token].encode())
        elif text is None:
            found.append(b"\xef\xbf\xbd")
        elif "ByteLevel" in kinds:
            found.append(_byte_level(text))
        elif "ByteFallback" in kinds or "Metaspace" in kinds:
            found.append(_sentencepiece(text))
        else:
            found.append(tokenizer.decode([token], skip_special_tokens=False).encode())
    return found


def _kinds(decoder: Mapping[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_kinds(inner) for inner in decoder.get("decoders", [])))


def _alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as: printable ones as themselves, the others from U+0100 on
    (GPT-2's ``bytes_to_unicode``, Radford et al. 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _alphabet()


def _byte_level(text: str) -> bytes:
    return b"".join(bytes([_BYTES[char]]) if char in _BYTES else char.encode() for char in text)


def _sentencepiece(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("▁", " ").encode()
