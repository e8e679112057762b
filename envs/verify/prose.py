"""The English around an answer: is it denied, doubted, followed by another one, or explained?

Word lists, matched within a sentence or a fixed number of characters, so that they take linear time.

Left out: understanding. A denial in other words than these passes; that is why boxes and tags are the formats to
train with, and phrases are for evaluation.
"""

from __future__ import annotations

import re

_NOT = r"not|n't|never|no[ ]longer|cannot|can't|isn't|wasn't|aren't|don't|doesn't|neither|nor"
_MAYBE = r"maybe|perhaps|possibly|probably|might|could|may"
_ABOUT = r"""approximately|approx|about|around|roughly|nearly|almost|close[ ]to|less[ ]than|more[ ]than|greater[ ]than|
    at[ ]least|at[ ]most|between"""

DOUBTFUL = re.compile(
    rf"(?<![A-Za-z])(?:{_NOT}|maybe|perhaps|possibly|might|wrong|incorrect|unlikely)(?![A-Za-z])",
    re.IGNORECASE | re.VERBOSE,
)
"""A word of doubt or denial, anywhere."""

_DENIED_AFTER = re.compile(
    rf"""\s*(?:definitely[ ]|certainly[ ]|surely[
    ])?(?:{_NOT}|{_MAYBE}|{_ABOUT}|incorrect|wrong|unknown|unclear|nowhere| anything[ ]but|far[ ]from|either|one[
    ]of|something)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_DENIED_BEFORE = re.compile(
    rf"""(?<![A-Za-z])(?:{_NOT}|instead[ ]of|rather[ ]than|wrong|incorrect|incorrectly|mistaken(?:ly)?|unlike|except|
    other[ ]than|anything[ ]but|far[ ]from|doubt(?:s|ful)?|unsure|if)
    (?:[ ]+(?!but\b|only\b)[A-Za-z']+){{0,6}}[ ]*[:,]?[ ]*(?:\*\*)?\$*(?:\\\[|\\\()?[ ]*(?:[A-Za-z][ ]*=[ ]*)?$
    |\\(?:neq?|not|lnot|neg)[ ]*$|≠[ ]*$""",
    re.IGNORECASE | re.VERBOSE,
)
_NEAR = 120

_HEDGE = re.compile(
    r"""[ \t]*\$*(?:\\\]|\\\))?[ \t]*[,;.:(]?[ \t]*(?:\n[ ]*)?
    (?:or|maybe|perhaps|possibly|alternatively|otherwise|actually|wait|hmm|no,|unless|another|either|although|though|
    (?:and[ ])?also|but(?:[ ]it)?[ ](?:could|might|may)|it[ ](?:could|might|may)[ ](?:also[ ])?be|could[ ]also[ ]be|
    might[ ]be|hold[ ]on|on[ ]second[ ]thought|
    (?:this|that)[ ](?:is|may[ ]be|might[ ]be|could[ ]be)[ ](?:wrong|incorrect|not))\b""",
    re.IGNORECASE | re.VERBOSE,
)
_ANOTHER = re.compile(
    r"""[0-9]|\\boxed|\\frac|\\sqrt|\\pi|wrong|incorrect|not[ ](?:right|correct|sure|certain)|mistake""",
    re.IGNORECASE | re.VERBOSE,
)
_HEDGE_REACH = 80

_REASON = re.compile(
    r""",[ ](?:not|rather[ ]than|instead[ ]of)[ ].*
    |,?[ ](?:because|since|as|which|where|when|if|so|given|after|from|by|assuming|for|that)[ ].*""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_SUBJECT = re.compile(
    r"""(?:(?:so|thus|hence|therefore|the|final|answer|result|total|is|are|equals|equal|to|it|he|she|they|we|there|has|
    have|had|will|be|gets?|got|x|of|in|an?|number|value|costs?|amount|pays?|needs?|makes?|earns?|[A-Z][a-z]+)
    [ ,:]++)++(?=[-$\\(]?[ ]?[0-9.\\])""",
    re.VERBOSE,
)

_UNCERTAIN = re.compile(
    r"(?<![A-Za-z])(?:or|maybe|perhaps|about|approximately|around|roughly|either)(?![A-Za-z])", re.IGNORECASE
)
_SIGNS_BEHIND = r"(?:[ ]?(?:\\?%|\^?\\circ|°|\$+|\\\)|\\\]|\}|\)))*"
_TRAILING = re.compile(
    rf"""{_SIGNS_BEHIND}(?:[ ]?/?[ ]?
    (?!(?:and|or|so|then|which|because|but|if|while|we|to|plus|minus|times|with|from|by|is|are|as|now|next|where|since|
    when|thus|hence|therefore|multiplied|divided|added)\b)[A-Za-z][A-Za-z'-]*){{0,4}}[\s.!*_$)\]}}\\`"']*""",
    re.VERBOSE,
)
_ENDED = re.compile(r"[.!?)\]}*$`\"'][\s*_$)`\"']*$")


def denied_before(text: str, start: int) -> bool:
    """Whether what stands at ``start`` is denied by the words right before it: "it is not", "I doubt that x ="."""
    return _DENIED_BEFORE.search(text[max(0, start - _NEAR) : start]) is not None


def denied_after(sentence: str) -> bool:
    """Whether a sentence after "the answer is" begins by denying or doubting."""
    return _DENIED_AFTER.match(sentence) is not None


def hedged(after: str) -> bool:
    """Whether the text behind an answer offers another one, or takes it back: ", or maybe 4"."""
    match = _HEDGE.match(after)
    return match is not None and _ANOTHER.search(after, match.end() - 1, match.end() + _HEDGE_REACH) is not None


def without_reason(sentence: str) -> str:
    """A sentence up to "because ..." or ", not ..."."""
    return _REASON.sub("", sentence)


def without_subject(sentence: str) -> str:
    """A sentence from its first value on, if only plain words are before that: "She has 5 apples"."""
    subject = _SUBJECT.match(sentence)
    return sentence[subject.end() :].strip() if subject else sentence


def ends_the_text(text: str, start: int, end: int) -> bool:
    """Whether a value at ``start`` to ``end`` is what the text ends on: its sentence, neither a question nor in
    doubt, ends the text, and does not break off."""
    rest = text[end:]
    begin = max(text.rfind("\n", 0, start), text.rfind(". ", 0, start), 0)
    sentence = text[begin:start]
    if DOUBTFUL.search(sentence) or denied_before(text, start) or "?" in rest or _UNCERTAIN.search(sentence[-40:]):
        return False
    trailing = _TRAILING.match(rest)
    if trailing is not None and trailing.end() == len(rest):
        return True
    return _ENDED.search(rest) is not None and not hedged(rest)
