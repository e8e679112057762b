"""Surprise by hand: its sums, its peak, its sentences, and the order of a batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from trace_frames import frame, row

from rlreason.analysis.surprise import moves, per_sentence, per_token, ranked, surprises


def surprised(group: int, by: list[float], sample: int = 0, **columns: Any) -> dict[str, Any]:
    """Tokens that the sampler gave -1 and the reference as much less; the trainer -2 throughout."""
    count = len(by)
    own = {"sampler_logp": [-1.0] * count, "policy_logp": [-2.0] * count, "ref_logp": [-1.0 - s for s in by]}
    return row(group, sample, tokens=count, **(own | columns))


def test_sums_and_peaks_over_all_segments() -> None:
    traces = frame(
        surprised(0, [0.5, 9.0, 1.0], mask=[True, False, True]),
        surprised(1, [0.25, 0.25]),
        surprised(0, [0.0, 4.5], segment=1),
        surprised(2, [0.0], ref_logp=None),
    )
    found = surprises(traces)
    assert found["tokens"].tolist() == [4, 2, 0]
    np.testing.assert_allclose(found["sum"], [6.0, 0.5, np.nan])
    np.testing.assert_allclose(found["mean"], [1.5, 0.25, np.nan])
    np.testing.assert_allclose(found["ref_sum"], [-10.0, -2.5, np.nan])
    np.testing.assert_allclose(found["ref_mean"], [-2.5, -1.25, np.nan])
    np.testing.assert_allclose(found["peak"], [4.5, 0.25, np.nan])
    assert found["peak_at"].iloc[0] == (2, 1)  # the frame's third row, its second token
    np.testing.assert_allclose(found["loss"], [2, 2, 2])
    # by the trainer's log-probabilities, one nat less each
    np.testing.assert_allclose(surprises(traces, "policy_logp")["sum"], [6.0 - 4, 0.5 - 2, np.nan])


def test_the_rewarded_that_surprise_most() -> None:
    traces = frame(
        surprised(0, [1.0] * 6),  # sum 6, mean 1
        surprised(1, [4.0]),  # sum 4, mean 4
        surprised(2, [9.0], correct=False),
        surprised(3, [0.1]),
        surprised(4, [9.0], reward=0.25, correct=None),
    )
    assert moves(traces, 2)["problem"].tolist() == ["p0", "p1"]
    assert moves(traces, 2, by="mean")["problem"].tolist() == ["p1", "p0"]
    assert moves(traces, 9)["problem"].tolist() == ["p0", "p1", "p3"]
    # with a reward to reach, what has no verdict counts too, but nothing that is wrong
    assert moves(traces, 9, min_reward=0.25)["problem"].tolist() == ["p4", "p0", "p1", "p3"]
    with pytest.raises(ValueError, match="was rewarded"):
        moves(traces, 9, min_reward=2.0)
    with pytest.raises(ValueError, match=r"no verdicts; .* by min_reward"):
        moves(traces.assign(correct=pd.array([None] * 5, dtype="boolean")), 9)


def test_without_a_reference_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"ref_logp is null in all .*python -m rlreason\.annotate"):
        surprises(frame(row()))
    with pytest.raises(ValueError, match=r"no ref_logp: have `python -m rlreason\.annotate`"):
        per_token(frame(row()).iloc[0])
    with pytest.raises(ValueError, match="no policy_logp: use of='sampler_logp'"):
        per_token(frame(row(ref_logp=[-1.0])).iloc[0], of="policy_logp")


def test_a_batch_sorted() -> None:
    traces = frame(
        surprised(0, [1.0], policy_logp=[-0.5], advantage=-2.0),
        surprised(1, [3.0, -1.5], policy_logp=[-3.0, -4.0], advantage=0.5),
        surprised(2, [2.0], policy_logp=None, advantage=math.nan),
        surprised(3, [0.0], policy_logp=[-1.0], advantage=1.0),
    )
    assert ranked(traces, "loss")["problem"].tolist() == ["p1", "p3", "p0", "p2"]  # 3.5, 1, 0.5, unknown
    assert ranked(traces, "loss")["loss"].iloc[0] == 3.5
    assert ranked(traces, "surprise")["problem"].tolist() == ["p2", "p1", "p0", "p3"]
    assert ranked(traces, "advantage")["problem"].tolist() == ["p0", "p3", "p1", "p2"]
    without = traces.assign(ref_logp=None)
    assert ranked(without, "advantage")["problem"].tolist() == ["p0", "p3", "p1", "p2"]
    with pytest.raises(ValueError, match="choose loss, surprise or advantage"):
        ranked(traces, "length")  # type: ignore[arg-type]


def test_per_token() -> None:
    traces = frame(surprised(0, [0.5, 9.0, -1.0], mask=[True, False, True]))
    found = per_token(traces.iloc[0], {10: "a", 11: "b", 12: "c"}.__getitem__)
    assert found.index.tolist() == [0, 2]
    assert found["text"].tolist() == ["a", "c"]
    np.testing.assert_allclose(
        found[["logp", "ref_logp", "surprise", "so_far"]], [[-1, -1.5, 0.5, 0.5], [-1, 0, -1, -0.5]]
    )


@pytest.mark.parametrize(
    ("pieces", "sentences", "begins"),
    [
        (["One", " two", ".", " Three", "!", " Four"], ["One two.", "Three!", "Four"], [0, 3, 5]),
        (["3", ".", "5", " is", " it", ".\n", "Yes"], ["3.5 is it.", "Yes"], [0, 6]),
        (["a", "\n", "\n", "b", "\n", " c"], ["a", "b", "c"], [0, 3, 5]),  # blank lines end what is before them
        (["Wait", "? No", " way", "."], ["Wait? No", "way."], [0, 2]),  # a token is in one sentence: where it begins
        (["", "a", ".", "", " b"], ["a.", "b"], [0, 4]),
    ],
)
def test_sentences(pieces: list[str], sentences: list[str], begins: list[int]) -> None:
    count = len(pieces)
    by = [float(2**i) for i in range(count)]
    traces = frame(surprised(0, by, completion_ids=list(range(count))))
    found = per_sentence(traces.iloc[0], pieces.__getitem__)
    assert found["text"].tolist() == sentences
    assert found["begin"].tolist() == begins
    assert found["end"].tolist() == [*begins[1:], count]
    cuts = [by[begin:end] for begin, end in zip(found["begin"], found["end"], strict=True)]
    assert found["sum"].tolist() == [sum(cut) for cut in cuts]
    assert found["mean"].tolist() == [sum(cut) / len(cut) for cut in cuts]
    assert found["peak"].tolist() == [max(cut) for cut in cuts]
    assert found["sum"].sum() == surprises(traces)["sum"].item()


def test_what_the_environment_wrote_is_in_no_sentences_sum() -> None:
    traces = frame(surprised(0, [1.0, 2.0, 4.0], mask=[True, False, False]))
    pieces = {10: "Call. ", 11: "Result", 12: " here."}
    found = per_sentence(traces.iloc[0], pieces.__getitem__)
    assert found["tokens"].tolist() == [1, 0]
    assert found["sum"].tolist() == [1.0, 0.0]
    assert math.isnan(found["peak"].iloc[1])
