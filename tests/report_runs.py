"""Run folders for the tests of the report page: any number of traces, written without a model; tokens are bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlreason.traces import SCHEMA

OFFSET = 4  # the tiny model's special tokens
END = 2  # <|im_end|>
HOSTILE = (
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'> <!-- <script> -->"
    "<svg onload='window.pwned = 3'> javascript:window.pwned=4 \u2028 &lt;b&gt; @@SCRIPT@@ 😀 naïve 数学"
)
WORDS = (
    "first",
    "then",
    "so",
    "sum",
    "three",
    "and",
    "four",
    "is",
    "seven",
    "twelve",
    "minus",
    "nine",
    "carry",
    "total",
)
MOVES = ("Wait, that is not right.", "Let me check: 3 + 4 = 7.", "First, I need to find the total.")


def _byte_ids() -> list[int]:
    """The tiny tokenizer's id of each byte: its alphabet is GPT-2's, sorted by character."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    char = {byte: byte for byte in shown} | {byte: 0x100 + i for i, byte in enumerate(hidden)}
    return [OFFSET + sorted(char.values()).index(char[byte]) for byte in range(256)]


BYTE_ID = np.array(_byte_ids(), dtype=np.int32)


def ids_of(text: str) -> list[int]:
    return BYTE_ID[np.frombuffer(text.encode(), dtype=np.uint8)].tolist()


def make_text(rng: random.Random, words: int, answer: int) -> str:
    said = rng.choices(WORDS, k=words)
    if rng.random() < 0.3:
        said.insert(rng.randrange(len(said)), "\n" + rng.choice(MOVES))
    return f"<think>\n{' '.join(said)} = {answer}\n</think>\n<answer>{answer}</answer>"


def row(rng: random.Random, step: int, split: str, group: int, sample: int, text: str, **given: Any) -> dict[str, Any]:
    """A trace with numbers for each of its tokens; ``given`` replaces columns."""
    own = np.random.default_rng(rng.randrange(2**32))
    ids = [*ids_of(text), END]
    policy = -own.exponential(0.4, len(ids)).astype(np.float32)
    train = split == "train"
    correct = rng.random() < 0.3 + 0.02 * step
    problem = f"sums/{group if not train else (step * 31 + group) % 97}"
    answer = text.rpartition("<answer>")[2].partition("<")[0] or None
    prompt = [{"role": "user", "content": f"What is the sum of {problem}?"}]
    found = {
        "step": step, "split": split, "env": "sums", "problem": problem, "group": group, "sample": sample, "segment": 0,
        "prompt": json.dumps(prompt), "text": text,
        "messages": json.dumps([*prompt, {"role": "assistant", "content": text}]),
        "finish": "stop" if rng.random() < 0.9 else "length", "reward": 1.0 * correct + 0.1 * (sample % 3),
        "correct": correct, "status": "ok" if rng.random() < 0.95 else "unparseable", "answer": answer, "gold": "7",
        "parts": json.dumps({"accuracy": float(correct), "format": sample % 3 / 10}), "meta": "{}",
        "advantage": (1.0 if correct else -0.5) if train else None, "grade_seconds": 0.01, "generate_seconds": 1.5,
        "prompt_tokens": 10, "completion_tokens": len(ids), "prompt_ids": [5] * 10, "completion_ids": ids,
        "sampler_logp": policy + own.normal(0, 0.01, len(ids)).astype(np.float32), "mask": [True] * len(ids),
        "policy_logp": policy if train else None,
        "ref_logp": policy - own.normal(0.1, 0.6, len(ids)).astype(np.float32) if train else None,
        "entropy": own.exponential(0.5, len(ids)).astype(np.float32) if train else None,
        "token_advantage": [1.0 if correct else -0.5] * len(ids) if train else None,
    }  # fmt: skip
    return found | given


def write(folder: Path, rows: list[dict[str, Any]], *, accuracy: float = 0.5) -> Path:
    """A run folder of these traces, with metrics for their steps."""
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    files: dict[str, list[dict[str, Any]]] = {}
    for own in rows:
        kind = "step" if own["split"] == "train" else f"eval-{own['split']}"
        files.setdefault(f"{kind}-{own['step']:06d}.parquet", []).append(own)
    for name, own in files.items():
        pq.write_table(pa.Table.from_pylist(own, schema=SCHEMA), folder / "traces" / name)
    lines = []
    for step in sorted({own["step"] for own in rows}):
        train = [own["reward"] for own in rows if own["step"] == step and own["split"] == "train"]
        line: dict[str, Any] = {"step": step}
        if train:
            line |= {"reward": sum(train) / len(train), "entropy": 1 / (1 + step), "frac_reward_zero_std": 0.1}
            line |= {"completions/mean_length": 50.0, "step_time": 3.0, "kl": 0.01 * step, "odd/metric": float(step)}
        if any(own["step"] == step and own["split"] != "train" for own in rows):
            level = min(0.9, accuracy + 0.01 * step)
            line |= {"eval/sums/accuracy": level, "eval/sums/accuracy_low": level - 0.1}
            line |= {"eval/sums/accuracy_high": level + 0.1}
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "config.yaml").write_text("name: sums\nmodel:\n  path: tiny\n", encoding="utf-8")
    manifest = {
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "seed": 3,
        "machine": {"cpu": "A processor", "cores": 2, "gpus": []},
        "model": {"path": "tiny", "parameters": 135_000_000, "dtype": "bfloat16"},
        "env": {"name": "sums", "source": "generated"},
        "started": "2026-01-02T03:04:05+00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def make_run(folder: Path, *, steps: int, groups: int, samples: int, words: int, seed: int = 0, evals: int = 0) -> Path:
    """``steps`` of ``groups`` x ``samples`` training traces of about ``words`` words, and every fifth step an
    evaluation on ``evals`` problems. The first trace of step 1 holds ``HOSTILE``."""
    rng = random.Random(seed)
    rows = []
    for step in range(1, steps + 1):
        for group in range(groups):
            for sample in range(samples):
                text = make_text(rng, rng.randint(words // 2, words * 3 // 2), rng.randint(0, 20))
                if (step, group, sample) == (1, 0, 0):
                    text = f"<think>\n{HOSTILE}\n</think>\n<answer>7</answer>"
                rows.append(row(rng, step, "train", group, sample, text))
        if evals and step % 5 == 0:
            for group in range(evals):
                text = make_text(rng, words, rng.randint(0, 20))
                rows.append(row(rng, step, "validation", group, 0, text))
    return write(folder, rows)
