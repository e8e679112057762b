"""The report page's data and file: nothing is lost on the way from the traces into the page; nothing reaches out."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import zlib
from collections.abc import Mapping
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from report_runs import END, HOSTILE, ids_of, make_run, make_text, row, write
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel

from rlreason import stats
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.thought import split_thought
from rlreason.report import main, report
from rlreason.reporting.data import gather
from rlreason.reporting.inline import MODULES, build
from rlreason.reporting.tokens import NULL, load_tokenizer, pieces, quantise

TYPES = {"f64": "<f8", "f32": "<f4", "i32": "<i4", "u8": "u1", "i8": "i1", "u16": "<u2"}


def opened(payloads: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The head and the arrays, as the page reads them."""
    head = json.loads(payloads["head"])
    types = head.get("types", {})
    return head, {name: np.frombuffer(payloads[name], dtype=TYPES[kind]) for name, kind in types.items()}


def texts(arrays: Mapping[str, Any]) -> list[str]:
    ends = np.cumsum(arrays["text_bytes"])
    return [part.tobytes().decode() for part in np.split(arrays["text"], ends[:-1])]


def numbers(head: dict[str, Any], arrays: Mapping[str, Any], name: str) -> np.ndarray[Any, Any]:
    """A column of tokens out of its bytes; NaN is unknown."""
    codes, scale = arrays[f"token/{name}"].astype(np.float64), head["scales"][name]
    part = (codes - 127) / 127 if scale["signed"] else codes / 254
    return np.where(codes == NULL, np.nan, np.sign(part) * part**2 * scale["scale"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", steps=6, groups=3, samples=4, words=12, evals=5)


def test_quantised_numbers_stay_within_their_bound() -> None:
    values = np.concatenate([-np.geomspace(1e-4, 30, 400), [0.0, np.nan], np.geomspace(1e-4, 12, 400)])
    for signed, levels in ((True, 127), (False, 254)):
        found = quantise(values if signed else np.abs(values), signed=signed)
        part = (found.q.astype(float) - 127) / 127 if signed else found.q / 254
        back = np.sign(part) * part**2 * found.scale
        wanted = values if signed else np.abs(values)
        known = ~np.isnan(wanted)
        assert found.scale == 30
        assert (found.q[~known] == NULL).all()
        assert (found.q[known] != NULL).all()
        bound = np.sqrt(np.abs(wanted) * 30) / levels + 30 / (4 * levels**2)
        assert (np.abs(back - wanted)[known] <= bound[known] + 1e-9).all()
        assert np.abs(back - wanted)[known].max() > bound[known].max() / 4  # the bound says something


def test_pieces_of_bytes_give_back_the_text() -> None:
    text = "Straße 数学 😀\n<think> a</think>"
    own = load_tokenizer("tiny")
    ids = own.encode(text, add_special_tokens=False).ids
    assert ids == ids_of(text)  # the tests' runs are written in its tokens
    found = pieces(own, [*ids, END])
    assert b"".join(found).decode() == text + "<|im_end|>"
    assert found[ids_of("Straß").index(ids_of("ß")[0])] == b"\xc3"  # half a character


def test_pieces_of_sentencepiece_and_of_words() -> None:
    vocabulary = {"<unk>": 0, "▁the": 1, "▁sum": 2, "s": 3, "<0xF0>": 4, "<0x9F>": 5, "<0x98>": 6, "<0x80>": 7}
    own = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    own.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ids = [1, 2, 3, 4, 5, 6, 7]
    assert b"".join(pieces(own, ids)).decode() == own.decode(ids) == " the sums😀"
    words = Tokenizer(WordLevel({"one": 0, "two": 1}, unk_token="one"))
    assert pieces(words, [1, 0, 9]) == [b"two", b"one", "\N{REPLACEMENT CHARACTER}".encode()]


def test_the_page_holds_what_the_traces_hold(run: Path) -> None:
    traces = read_traces(run)
    found = gather(run, max_tokens=10**9)
    assert (found.traces, found.with_tokens, found.notes) == (len(traces), len(traces), ())
    head, arrays = opened(found.payloads)
    assert texts(arrays) == traces["text"].tolist()
    assert HOSTILE in texts(arrays)[0]
    for name in ("step", "group", "sample", "reward", "correct", "generate_seconds"):
        assert arrays[name].tolist() == traces[name].astype(arrays[name].dtype).tolist(), name
    np.testing.assert_array_equal(arrays["advantage"], traces["advantage"].to_numpy())  # NaN in evaluations
    for name in ("problem", "split", "status", "finish", "answer", "gold", "prompt"):
        words = head["words"][name]
        assert [words[code] if code >= 0 else None for code in arrays[name]] == traces[name].tolist(), name
    parts = traces["parts"].map(json.loads)
    assert arrays["part/format"].tolist() == [own["format"] for own in parts]
    assert arrays["tokens"].tolist() == traces["completion_tokens"].tolist()
    ids = arrays["token_id"][arrays["token"]]
    assert ids.tolist() == np.concatenate(traces["completion_ids"].tolist()).tolist()
    lengths = arrays["piece_bytes"]
    piece = np.split(arrays["piece"], np.cumsum(lengths)[:-1])
    said = b"".join(piece[code].tobytes() for code in arrays["token"][: arrays["tokens"][0]])
    assert said.decode() == traces["text"][0] + "<|im_end|>"
    train = np.repeat(traces["split"] == "train", traces["completion_tokens"]).to_numpy()
    columns = {"logp": ("policy_logp", -1), "entropy": ("entropy", 1), "advantage": ("token_advantage", 1)}
    for name, (column, sign) in columns.items():
        wanted = sign * np.concatenate(traces[column].dropna().tolist())
        np.testing.assert_allclose(numbers(head, arrays, name)[train], wanted, atol=0.06)
    assert np.isnan(numbers(head, arrays, "entropy")[~train]).all()
    sampled = -np.concatenate(traces["sampler_logp"][traces["split"] != "train"].tolist())
    np.testing.assert_allclose(numbers(head, arrays, "logp")[~train], np.maximum(sampled, 0), atol=0.06)
    assert (arrays["trained"] == train).all()


def test_metrics_go_in_as_they_are(run: Path) -> None:
    head, _ = opened(gather(run, max_tokens=0).payloads)
    metrics = read_metrics(run)
    assert head["metrics"].keys() == set(metrics)
    shown = pd.DataFrame(head["metrics"]).astype(float)
    np.testing.assert_allclose(shown, metrics.astype(float), rtol=1e-5)
    about = dict(head["about"])
    assert about["model"] == "tiny, 135M parameters, bfloat16"
    assert about["code"] == "0123456789, with uncommitted changes"


def test_means_over_a_trace_by_hand(tmp_path: Path) -> None:
    rng = random.Random(0)
    own = row(rng, 1, "train", 0, 0, "ab")
    own |= {"policy_logp": [-1.0, -2.0, -3.0], "ref_logp": [-2.0, -2.0, -6.0], "mask": [True, True, False]}
    own |= {"entropy": [0.5, 1.5, 9.0], "sampler_logp": [-9.0, -9.0, -9.0], "token_advantage": [2.0, 2.0, 2.0]}
    head, arrays = opened(gather(write(tmp_path / "run", [own]), max_tokens=100).payloads)
    assert arrays["mean_logp"].tolist() == [-1.5]  # the last token was the environment's
    assert arrays["surprise"].tolist() == [0.5]  # (-1 + 2) and (-2 + 2), halved
    assert arrays["entropy"].tolist() == [1.0]
    assert arrays["loss"].tolist() == [1.5]
    assert head["reference"] is True
    assert np.isnan(numbers(head, arrays, "logp")[2])
    alone = own | {"ref_logp": None, "policy_logp": None}
    head, arrays = opened(gather(write(tmp_path / "alone", [alone]), max_tokens=100).payloads)
    assert head["reference"] is False
    assert arrays["surprise"].tolist() == [9.0]  # -log p of the sampler
    assert "token/surprise" not in arrays


def test_segments_lie_end_to_end_and_the_conversation_is_kept(tmp_path: Path) -> None:
    rng = random.Random(0)
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ab"}]
    turns = [*said, {"role": "user", "content": "no"}, {"role": "assistant", "content": "c"}]
    shared = {"prompt": json.dumps(said[:1]), "messages": json.dumps(turns)}
    rows = [row(rng, 1, "train", 0, 0, "c", **shared, segment=i) for i in (0, 1)]
    for own, text in zip(rows, ("ab", "c"), strict=True):
        own |= row(random.Random(1), 1, "train", 0, 0, text, **shared, segment=own["segment"]) | {"text": "c"}
    rows.append(row(rng, 1, "train", 0, 1, "d"))
    head, arrays = opened(gather(write(tmp_path / "run", rows), max_tokens=100).payloads)
    assert head["traces"] == 2
    assert arrays["tokens"].tolist() == [5, 2]
    assert arrays["token_id"][arrays["token"]].tolist() == [*ids_of("ab"), END, *ids_of("c"), END, *ids_of("d"), END]
    assert arrays["turns"].tolist() == [0, -1]
    assert json.loads(head["words"]["turns"][0]) == turns[1:]


def test_the_answer_begins_where_the_thought_ends(tmp_path: Path) -> None:
    said = {
        "<think>\n😀 a\n</think>\n<answer>7</answer>": "<answer>7</answer>",
        "a + b\n#### 7": "#### 7",
        "<think>\nand then": "",
        "no answer at all": None,
    }
    rng = random.Random(0)
    rows = [row(rng, 1, "train", 0, i, text) for i, text in enumerate(said)]
    _, arrays = opened(gather(write(tmp_path / "run", rows), max_tokens=0).payloads)
    for text, rest, cut in zip(said, said.values(), arrays["cut"].tolist(), strict=True):
        units = text.encode("utf-16-le")
        assert (None if cut < 0 else units[2 * cut :].decode("utf-16-le")) == rest, split_thought(text)


def test_a_budget_keeps_whole_groups_all_over_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=40, groups=5, samples=4, words=8)
    traces = read_traces(run)
    total = int(traces["completion_tokens"].sum())
    found = gather(run, max_tokens=total // 4)
    _, arrays = opened(found.payloads)
    kept = traces.assign(kept=arrays["kept"].astype(bool))
    assert 0.2 * total < kept.loc[kept["kept"], "completion_tokens"].sum() <= total // 4
    assert len(arrays["token"]) == kept.loc[kept["kept"], "completion_tokens"].sum()
    assert kept.groupby(["step", "group"])["kept"].nunique().eq(1).all()
    by_part = kept.groupby((kept["step"] - 1) // 10)["kept"].mean()
    assert by_part.min() > 0.15, by_part
    assert f"Tokens are kept for {found.with_tokens:,} of 800 traces" in found.notes[0]
    assert gather(run, max_tokens=0).with_tokens == 0


def test_intervals_of_the_training_curves(run: Path) -> None:
    head, _ = opened(gather(run, max_tokens=0).payloads)
    traces = read_traces(run)
    band = head["bands"]["reward"]
    assert band["step"] == [1, 2, 3, 4, 5, 6]
    third = traces[(traces["step"] == 3) & (traces["split"] == "train")].groupby("group")["reward"].mean()
    low, high = stats.bootstrap_interval(third.to_numpy(), resamples=1000)
    assert (band["low"][2], band["high"][2]) == pytest.approx((low, high), rel=1e-5)
    # 50 tokens, say the metrics; that is not what these traces hold, so they don't get an interval of them
    assert head["bands"]["completions/mean_length"]["step"] == []


def test_without_a_tokenizer_there_is_plain_text(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "traces").symlink_to(run / "traces")
    (alone / "config.yaml").write_text("model:\n  path: runs/gone/checkpoints/step-000001\n", encoding="utf-8")
    found = gather(alone, max_tokens=10**9)
    assert found.with_tokens == 0
    assert "no tokenizer could be loaded" in found.notes[0]
    assert "runs/gone/checkpoints/step-000001" in found.notes[0]
    assert texts(opened(found.payloads)[1]) == read_traces(run)["text"].tolist()
    given = gather(alone, max_tokens=10**9, tokenizer="tiny")
    assert given.with_tokens == given.traces
    assert given.notes == ()


def test_a_checkpoint_brings_its_tokenizer(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "checkpoints" / "step-000002").mkdir(parents=True)
    (own / "traces").symlink_to(run / "traces")
    load_tokenizer("tiny").save(str(own / "checkpoints" / "step-000002" / "tokenizer.json"))
    found = gather(own, max_tokens=10**9)
    assert found.with_tokens == found.traces > 0


def test_version_1_of_the_traces(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    (old / "traces").mkdir(parents=True)
    new = ["grade_seconds", "generate_seconds", "policy_logp", "ref_logp", "entropy", "token_advantage"]
    for file in (run / "traces").iterdir():
        table = pq.read_table(file).drop_columns(new).replace_schema_metadata({"rlreason.schema": "1"})
        pq.write_table(table, old / "traces" / file.name)
    found = gather(old, max_tokens=10**9, tokenizer="tiny")
    head, arrays = opened(found.payloads)
    assert found.with_tokens == len(read_traces(run))
    assert set(head["scales"]) == {"logp"}
    assert np.isnan(arrays["generate_seconds"]).all()


def test_a_run_without_traces_and_an_evaluation_without_metrics(run: Path, tmp_path: Path) -> None:
    curves = tmp_path / "curves"
    curves.mkdir()
    (curves / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n', encoding="utf-8")
    found = gather(curves, max_tokens=10)
    assert (found.traces, found.notes) == (0, ("This run has no traces.",))
    assert opened(found.payloads)[0]["metrics"] == {"step": [1, 2], "loss": [2.0, None]}
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "traces").symlink_to(run / "traces")
    assert gather(evaluation, max_tokens=10).traces == len(read_traces(run))


class Elements(HTMLParser):
    """What a page's source holds: elements with their attributes, and scripts and styles with their text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.text.append("")
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.text[-1] += data


def test_the_page_reaches_out_to_nothing(run: Path) -> None:
    page = report(run).read_text(encoding="utf-8")
    assert (run / "report.html").is_file()
    elements = Elements(page)
    policy = next(own["content"] for tag, own in elements.found if own.get("http-equiv") == "Content-Security-Policy")
    code = [text for (tag, own), text in zip(elements.found, elements.text, strict=True) if own.get("type") == "module"]
    style = [text for (tag, _), text in zip(elements.found, elements.text, strict=True) if tag == "style"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*code, *style)]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    for tag, own in elements.found:
        assert not {"src", "srcset", "style", "onclick", "onload"} & own.keys(), (tag, own)
        assert (own.get("href") or "#").startswith("#")
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {
        "http://www.w3.org/2000/svg"
    }  # SVG's name, fetched by nobody
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    assert "innerHTML" not in code[0]
    assert "pwned" not in page
    assert re.search(r"^(import|export)\b", code[0], re.MULTILINE) is None
    data = {own["id"]: text for (_, own), text in zip(elements.found, elements.text, strict=True) if "id" in own}
    packed = {
        str(name).removeprefix("a/"): zlib.decompress(base64.b64decode(text))
        for name, text in data.items()
        if str(name).startswith("a/")
    }
    assert packed == gather(run, max_tokens=10_000_000).payloads
    assert build("title", {"x": b"1"}) == build("title", {"x": b"1"})


def test_every_module_is_in_the_page() -> None:
    page = files("rlreason.reporting").joinpath("page")
    assert {f"{name}.js" for name in MODULES} == {own.name for own in page.joinpath("js").iterdir()}
    for place, name in enumerate(MODULES):
        source = page.joinpath("js", f"{name}.js").read_text(encoding="utf-8")
        assert set(re.findall(r'from "\./(\w+)\.js"', source)) <= set(MODULES[:place]), name


def test_a_title_is_no_markup() -> None:
    page = build('<img src=x> & "@@DATA@@"', {"a/x": b"<b>"})
    assert "&lt;img src=x&gt; &amp; &quot;@@DATA@@&quot;" in page
    assert "<img" not in page


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write(tmp_path / "other", [row(random.Random(0), 1, "train", 0, 0, make_text(random.Random(0), 5, 1))])
    assert main([str(run), str(other)]) == 0
    assert (run / "report-vs-other.html").is_file()
    assert "72 of" not in capsys.readouterr().out
    out = tmp_path / "page.html"
    assert main([str(run), "--out", str(out), "--max-tokens", "1000"]) == 0
    assert "Tokens are kept for" in capsys.readouterr().out
    assert out.is_file()
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere holds neither metrics.jsonl nor traces; give a run folder" in capsys.readouterr().err
    assert main([str(run), "--out", str(tmp_path / "no" / "folder.html")]) == 2
    assert "error:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(run), "--max-tokens", "-1"])


def test_a_damaged_file_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "traces").mkdir()
    for name in ("step-000001.parquet", "step-000002.parquet"):
        (tmp_path / "traces" / name).write_bytes((run / "traces" / name).read_bytes())
    (tmp_path / "traces" / "step-000001.parquet").write_bytes(b"PAR1 and no more")
    assert main([str(tmp_path)]) == 2
    assert "step-000001.parquet is damaged" in capsys.readouterr().err
