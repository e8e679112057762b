"""What the report page shows of one run: its metrics, and its traces as columns, in the form that the page reads.

Each payload is an array's bytes (little-endian), but for ``head``, which is JSON and names the others' types. A trace
is a rollout; its tokens are those of its segments, end to end. Numbers of tokens are kept in a byte each
(``tokens.quantise``).

Left out: reading a run in pieces. All its traces are in memory once, prompts' ids aside: some 2 GB for 50,000 traces of
1,000 tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from omegaconf import OmegaConf
from tokenizers import Tokenizer

from rlreason.analysis.behaviour_rules import RULES
from rlreason.analysis.behaviours import behaviours
from rlreason.analysis.frames import KEY, rollouts
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.thought import split_thought
from rlreason.reporting.tokens import Quantised, find_tokenizer, load_tokenizer, pieces, quantise
from rlreason.stats import bootstrap_interval

_SHARED = ["env", "problem", "segment", "prompt", "text", "messages", "finish", "reward", "correct", "status", "answer"]
_SHARED += ["gold", "parts", "meta", "advantage", "grade_seconds", "generate_seconds", "completion_tokens"]
_TOKENS = ["completion_ids", "mask", "sampler_logp", "policy_logp", "ref_logp", "entropy", "token_advantage"]
_WORDS = ("split", "env", "problem", "finish", "status", "answer", "gold", "prompt", "meta")
_TYPES = {"float64": "f64", "float32": "f32", "int32": "i32", "uint8": "u8", "int8": "i8", "uint16": "u16"}

# Curves of training that are means over a step's rollouts, and the columns of the traces that they are means of.
_EXPLAINED = {"reward": "reward", "accuracy": "correct", "completions/mean_length": "completion_tokens"}
_CLOSING = re.compile(r"\s*(?:</think>)?\s*")


@dataclass(frozen=True)
class RunData:
    """A run's payloads by name, and what became of them: ``traces`` in all, ``with_tokens`` of them with their tokens,
    and why there are none or no tokenizer (empty: nothing to say)."""

    payloads: dict[str, bytes]
    traces: int
    with_tokens: int
    notes: tuple[str, ...]


def gather(run: Path, *, max_tokens: int, tokenizer: str | None = None) -> RunData:
    """What the page shows of ``run``, keeping tokens up to ``max_tokens`` in all: whole groups, spread over the run.

    ``tokenizer`` is a model's folder or name, instead of the run's own. Raises FileNotFoundError if the folder holds
    neither metrics nor traces, and ValueError if a file in it is damaged.
    """
    config, manifest = _yaml(run / "config.yaml"), _json(run / "manifest.json")
    metrics = read_metrics(run) if (run / "metrics.jsonl").exists() else pd.DataFrame({"step": []})
    there = any((run / "traces").glob("*.parquet"))
    if metrics.empty and not there:
        raise FileNotFoundError(f"{run} holds neither metrics.jsonl nor traces; give a run folder")
    head: dict[str, Any] = {
        "name": _name(run, config),
        "about": _about(config, manifest, run),
        "metrics": {str(name): _numbers(metrics[name]) for name in metrics},
        "traces": 0,
    }
    payloads: dict[str, bytes] = {}
    notes: list[str] = []
    kept = 0
    if there:
        frame = read_traces(run, [*KEY, *_SHARED, *_TOKENS])
        first = rollouts(frame)
        arrays = _columns(first) | _texts(first)
        flat = _Flat(frame)
        arrays |= flat.summaries()
        words = {name: _coded(first[name]) for name in _WORDS}
        words["turns"] = _coded(
            pd.Series([_turns(*row) for row in zip(first["messages"], first["prompt"], strict=True)])
        )
        arrays |= {name: codes for name, (codes, _) in words.items()}
        arrays |= _spans(first["text"])
        head |= {
            "traces": len(first),
            "words": {name: found for name, (_, found) in words.items()},
            "behaviours": [{"name": rule.name, "rule": f"{rule.definition} ({rule.source})"} for rule in RULES],
            "bands": _bands(first, metrics),
            "reference": flat.has("ref_logp"),
        }
        chosen = _chosen(first, flat.ends, max_tokens)
        kept = int(chosen.sum())
        try:
            reader = load_tokenizer(tokenizer) if tokenizer else find_tokenizer(run, config, manifest)
        except (OSError, ValueError) as error:
            kept, chosen = 0, np.zeros_like(chosen)
            notes.append(f"No tokens are shown: no tokenizer could be loaded ({error}).")
        else:
            stored, scales = flat.stored(chosen, reader)
            arrays |= stored
            head["scales"] = scales
        arrays["kept"] = chosen.astype(np.uint8)
        if 0 < kept < len(first):
            notes.append(
                f"Tokens are kept for {kept:,} of {len(first):,} traces, whole groups spread over the run "
                f"(--max-tokens {max_tokens:,}); the others show plain text."
            )
        head["types"] = {name: _TYPES[array.dtype.name] for name, array in arrays.items()}
        payloads |= {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}
    else:
        notes.append("This run has no traces.")
    head["notes"] = notes
    payloads["head"] = json.dumps(head, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return RunData(payloads, head["traces"], kept, tuple(notes))


def _name(run: Path, config: Mapping[str, Any]) -> str:
    folder = run.resolve().name
    return folder if config.get("name") in (None, folder) else f"{config['name']} / {folder}"


def _yaml(path: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    return found if isinstance(found, dict) else {}  # type: ignore[return-value]


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _about(config: Mapping[str, Any], manifest: Mapping[str, Any], run: Path) -> list[tuple[str, str]]:
    """What the run was made of, for the page's head; only what is known."""
    model, env, machine = (manifest.get(key) or {} for key in ("model", "env", "machine"))
    git, algo = manifest.get("git") or {}, config.get("algo") or {}
    gpus = ", ".join(map(str, machine.get("gpus") or []))
    size = f"{model['parameters'] / 1e6:,.0f}M parameters, {model.get('dtype')}" if model.get("parameters") else ""
    cores = f"{machine['cores']} cores" if machine.get("cores") else ""
    sizes = {"prompts": algo.get("num_prompts"), "samples": algo.get("num_generations")}
    found = {
        "model": _joined(model.get("path"), size),
        "environment": _joined(env.get("name"), env.get("source")),
        "batch": " × ".join(f"{count} {what}" for what, count in sizes.items() if count),
        "learning rate": str(algo.get("learning_rate") or ""),
        "seed": str(manifest.get("seed", "")),
        "code": _joined((git.get("commit") or "")[:10], "with uncommitted changes" if git.get("dirty") else ""),
        "machine": _joined(gpus or machine.get("cpu"), "" if gpus else cores),
        "started": str(manifest.get("started") or "").replace("T", " ").replace("+00:00", " UTC"),
        "command": str(manifest.get("command") or ""),
        "ended": "as planned" if (run / "summary.json").is_file() else "not yet, or not as planned",
    }
    return [(name, text) for name, text in found.items() if text]


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _numbers(column: pd.Series[Any]) -> list[float | int | None]:
    if column.dtype.kind == "i":
        return column.tolist()
    # Six digits are more than a curve shows.
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in column.tolist()]


def _bands(first: pd.DataFrame, metrics: pd.DataFrame) -> dict[str, dict[str, list[float | int | None]]]:
    """95 % intervals over prompts of the training curves that the traces can explain: those that are the mean over a
    step's rollouts to within rounding."""
    found = {}
    train = first[(first["split"] == "train") & (first["status"] != "error")]
    for metric, column in _EXPLAINED.items():
        if metric not in metrics or train.empty or train[column].isna().all():
            continue
        values = train.assign(value=train[column].astype("float64"))
        groups = values.groupby(["step", "group"])["value"].mean()
        known = metrics.set_index("step")[metric]
        rows = [
            (int(step), *bootstrap_interval(own.to_numpy(), resamples=1000))
            for step, own in groups.dropna().groupby("step")
            if abs(own.mean() - known.get(step, np.nan)) <= 1e-4 * max(1.0, abs(own.mean()))
        ]
        steps, low, high = zip(*rows, strict=True) if rows else ((), (), ())
        found[metric] = {"step": list(steps), "low": _numbers(pd.Series(low)), "high": _numbers(pd.Series(high))}
    return found


def _columns(first: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """The numbers of each trace. ``correct`` is 1, 0, or -1 without a verdict."""
    found: dict[str, npt.NDArray[Any]] = {name: first[name].to_numpy(np.int32) for name in ("step", "group", "sample")}
    for name in ("reward", "advantage", "grade_seconds", "generate_seconds"):
        found[name] = first[name].to_numpy(np.float64, na_value=np.nan)
    found["correct"] = first["correct"].astype("Int8").fillna(-1).to_numpy(np.int8)
    codes, unique = pd.factorize(first["parts"])
    parts = [json.loads(text) for text in unique]
    for part in sorted({name for own in parts for name in own}):
        values = np.array([_float(own.get(part)) for own in parts], dtype=np.float64)
        found[f"part/{part}"] = values[codes]
    return found


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _coded(column: pd.Series[Any]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """A column of strings as codes and the strings they stand for; -1 is null."""
    codes, unique = pd.factorize(column)
    return codes.astype(np.int32), [str(word) for word in unique]


def _turns(conversation: str, posed: str) -> str | None:
    """The conversation after the prompt, where it is more than one answer; JSON."""
    messages, prompt = json.loads(conversation), json.loads(posed)
    said = messages[sum(1 for old, new in zip(prompt, messages, strict=False) if old == new) :]
    return json.dumps(said, ensure_ascii=False) if len(said) > 1 else None


def _texts(first: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    encoded = [text.encode() for text in first["text"]]
    answer = cache(_answer_begins)
    return {
        "cut": np.array([answer(text) for text in first["text"]], dtype=np.int32),
        "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "text_bytes": np.array([len(text) for text in encoded], dtype=np.int32),
    }


def _answer_begins(text: str) -> int:
    """Where the answer begins, the end of the thought's tag and the white space after it counted to the thought; the
    text's length if it never does, and -1 if nothing is marked as thought or answer. In UTF-16 units."""
    parts = split_thought(text)
    if parts.answer_start is None:
        return _utf16(text)(len(text)) if "<think>" in text else -1
    closing = _CLOSING.match(text, parts.end)
    assert closing is not None, "it matches nothing, too"
    return _utf16(text)(closing.end())


def _spans(texts: pd.Series[Any]) -> dict[str, npt.NDArray[Any]]:
    """Behaviours in each text: how many, then which of ``RULES``, from where, to where, in UTF-16 units."""
    number = {rule.name: place for place, rule in enumerate(RULES)}

    @cache
    def found(text: str) -> list[tuple[int, int, int]]:
        place = _utf16(text)
        return [(number[span.name], place(span.start), place(span.end)) for span in behaviours(text)]

    own = [found(text) for text in texts]
    laid = np.array([span for spans in own for span in spans], dtype=np.int32).reshape(-1, 3)
    return {
        "spans": np.array([len(spans) for spans in own], dtype=np.int32),
        "span_name": laid[:, 0].astype(np.uint8),
        "span_start": laid[:, 1],
        "span_end": laid[:, 2],
    }


def _utf16(text: str) -> Callable[[int], int]:
    """What turns a place in a text into the page's count, in which a character beyond U+FFFF is two."""
    if text.isascii():
        return int
    before = np.cumsum([0, *(2 if ord(char) > 0xFFFF else 1 for char in text)])
    return lambda place: int(before[place])


class _Flat:
    """The tokens of a frame's rows, end to end; ``ends`` says where each rollout's end. NaN is unknown."""

    def __init__(self, frame: pd.DataFrame) -> None:
        lengths = frame["completion_ids"].map(len).to_numpy(np.int64)
        starts = np.flatnonzero((frame["segment"] == 0).to_numpy())
        own = np.add.reduceat(lengths, starts) if len(starts) else lengths
        self.ends = np.cumsum(own)
        self.lengths = own
        self._frame = frame
        self._lengths = lengths
        self._mask = self._laid("mask", 1.0).astype(bool)
        policy, sampler = self._column("policy_logp"), self._column("sampler_logp")
        self.trained = ~np.isnan(policy)
        self.logp = np.where(self.trained, policy, sampler)
        self.surprise = self.logp - self._column("ref_logp")
        self.entropy = self._column("entropy")
        self.advantage = self._column("token_advantage")

    def has(self, column: str) -> bool:
        return bool(self._frame[column].notna().any())

    def _laid(self, column: str, missing: float) -> npt.NDArray[np.float32]:
        blank = np.full(int(self._lengths.max(initial=0)), missing, dtype=np.float32)
        rows = [
            blank[:length] if values is None or np.ndim(values) == 0 else np.asarray(values, dtype=np.float32)
            for values, length in zip(self._frame[column], self._lengths.tolist(), strict=True)
        ]
        found = np.concatenate(rows) if rows else blank
        if len(found) != self.ends[-1:].sum():
            raise ValueError(f"the traces' {column} is not as long as their completion_ids; a file is damaged")
        return found

    def _column(self, column: str) -> npt.NDArray[np.float32]:
        """A column with NaN on what the environment wrote."""
        values = self._laid(column, np.nan)
        values[~self._mask] = np.nan
        return values

    def summaries(self) -> dict[str, npt.NDArray[Any]]:
        """Means over each trace's own tokens: ``surprise`` is log policy - log reference where the run has a reference,
        else -log p; ``loss`` is -log p, as in ``analysis.surprise``."""
        surprise = self.surprise if self.has("ref_logp") else -self.logp
        return {
            "mean_logp": self._means(self.logp),
            "surprise": self._means(surprise),
            "entropy": self._means(self.entropy),
            "loss": self._means(-self.logp),
            "tokens": self.lengths.astype(np.int32),
        }

    def _means(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        known = ~np.isnan(values)
        total = np.cumsum(np.concatenate(([0.0], np.where(known, values, 0.0))), dtype=np.float64)
        number = np.cumsum(np.concatenate(([0], known)))
        starts = self.ends - self.lengths
        n = number[self.ends] - number[starts]
        return np.where(n > 0, (total[self.ends] - total[starts]) / np.maximum(n, 1), np.nan).astype(np.float32)

    def stored(self, chosen: npt.NDArray[np.bool_], tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tokens of the chosen traces: what they read, and their numbers as bytes with their scales."""
        keep = np.repeat(chosen, self.lengths)
        ids = np.concatenate([np.asarray(row) for row in self._frame["completion_ids"]])[keep]
        used, codes = np.unique(ids, return_inverse=True)
        texts = pieces(tokenizer, used.tolist())
        arrays: dict[str, Any] = {
            "token": codes.astype(np.uint16 if len(used) <= 0x10000 else np.int32),
            "token_id": used.astype(np.int32),
            "piece": np.frombuffer(b"".join(texts), dtype=np.uint8),
            "piece_bytes": np.array([len(text) for text in texts], dtype=np.int32),
            "trained": self.trained[keep].astype(np.uint8),
        }
        scales = {}
        numbers: dict[str, Quantised] = {
            "logp": quantise(-self.logp[keep], signed=False),
            "surprise": quantise(self.surprise[keep], signed=True),
            "entropy": quantise(self.entropy[keep], signed=False),
            "advantage": quantise(self.advantage[keep], signed=True),
        }
        for name, found in numbers.items():
            if (found.q != 255).any():
                arrays[f"token/{name}"] = found.q
                scales[name] = {"scale": found.scale, "signed": found.signed}
        return arrays, scales


def _chosen(first: pd.DataFrame, ends: npt.NDArray[np.int64], budget: int) -> npt.NDArray[np.bool_]:
    """Which traces keep their tokens: groups in an order that spreads over the run from the first one on (multiples of
    the golden ratio, modulo 1), until the budget is spent."""
    if not len(ends) or ends[-1] <= budget:
        return np.ones(len(ends), dtype=bool)
    group = first.groupby(["step", "split", "group"], sort=False).ngroup().to_numpy()
    lengths = np.bincount(group, weights=np.diff(ends, prepend=0))
    order = np.argsort(np.arange(len(lengths)) * 0.6180339887498949 % 1.0)
    kept = np.zeros(len(lengths), dtype=bool)
    kept[order[np.cumsum(lengths[order]) <= budget]] = True
    return kept[group]
