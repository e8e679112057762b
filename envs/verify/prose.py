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

_LONGEST_PLACEHOLDER = 60
_PLACEHOLDER = re.compile(
    r"""[\s.]*(?:(?:(?:the|your|final|insert|put|here|numeric(?:al)?|correct)\s+)*
    (?:answer|number|result|value|expression|solution|option|letter|choice)(?:\s+here)?
    |\.{2,}|…|\\(?:ldots|dots|cdots|square|cdot|_)|\\text\{[^{}]*answer[^{}]*\}|_+|\?+|ans)?[\s.]*""",
    re.IGNORECASE | re.VERBOSE,
)
_IN_DOUBT = re.compile(
    r"""(?<![A-Za-z\\])(?:not|isn't|isnt|never|cannot|can't|maybe|perhaps|possibly|probably|approximately|approx|about|
        around|roughly|nearly|almost|either|unsure|guess|might|could|unknown|undetermined|at[ ]least|at[ ]most|
        more[ ]than|less[ ]than|wait|hmm)(?![A-Za-z])
    |\\(?:neg|lnot|not|nexists|[hv]?phantom|[bx]?cancel|sout|st)(?![A-Za-z])|\?""",
    re.IGNORECASE | re.VERBOSE,
)
_MEANT = re.compile(
    r"""(?:can(?:not|'t)[ ]be|not[ ](?:enough|possible|defined|unique|solvable|real|a[ ])|does[ ]not[ ]exist|no[ ]|none|
    nothing|undetermined)[A-Za-z ]*""",
    re.IGNORECASE | re.VERBOSE,
)

DOUBTFUL = re.compile(
    rf"(?<![A-Za-z])(?:{_NOT}|maybe|perhaps|possibly|might|wrong|incorrect|unlikely)(?![A-Za-z])",
    re.IGNORECASE | re.VERBOSE,
)
"""A word of doubt or denial, anywhere."""

_DENIED_AFTER = re.compile(
    rf"""\s*(?:(?:definitely|certainly|surely)[ ])?(?:{_NOT}|{_MAYBE}|{_ABOUT}|incorrect|wrong|unknown|unclear|nowhere|
    anything[ ]but|far[ ]from|either|one[ ]of|something)\b""",
    re.IGNORECASE | re.VERBOSE,
)
# A denial counts if no verb stands between it and the answer: "those who do not play are 12" denies nothing. What one
# does not think, say or believe, and what is only supposed, reaches to the end of its sentence.
_DENIAL = r"""(?:(?:is|are|was|be|it's|that's|equals?)[ ]?(?:definitely[ ])?
        (?:not|n't|never|no[ ]longer|neither|nor|anything[ ]but|far[ ]from|unlikely[ ]to[ ]be|other[ ]than)
    |(?:cannot|can't|could[ ]not)[ ](?:be|equal)|isn't|wasn't|aren't|ain't|(?:doesn't|does[ ]not)[ ]equal
    |not|nor|unlike|instead[ ]of|rather[ ]than|except)"""
_FAR_DENIAL = r"""(?:false[ ]that|suppose|assum(?:e|ing)[ ](?:that[ ])?the[ ]answer|unsure|not[ ]sure
    |maybe|perhaps|possibly|guess(?:ing)?|(?:doubt|deny|reject|rule[ ]out|disprove|contradict)s?
    |(?:don't|do[ ]not|doesn't|cannot|can't|nobody|no[ ]one|hardly|would[ ]not|wouldn't)[ ](?:would[ ])?
        (?:think|believe|say|claim|agree|conclude|mean|trust))(?![A-Za-z]).*"""
_WRONG = r"(?:wrong|incorrect|mistaken)[ ](?:answer|result|solution|value)(?:[ ]is)?"
_FILLER = r"""(?:(?:the|an?|that|really|actually|simply|exactly|just|equal|to|answer|value|correct|right|final)
    [ ]+)*"""
_DENIED_BEFORE = re.compile(
    rf"""(?<![A-Za-z])(?:{_DENIAL}|{_FAR_DENIAL}|{_WRONG})[ ]*{_FILLER}
        [:,]?[ ]*(?:\*\*)?\$*(?:\\\[|\\\()?[ ]*(?:[A-Za-z][ ]*=[ ]*)?$
    |(?:[0-9.}}]|\$)[ ]*(?:or|/)[ ]+\$*$
    |(?<![A-Za-z])(?:for[ ]example|such[ ]as|(?:in|of)[ ](?:the|this)[ ]form(?:at)?|format|like[ ]this)[ ,:]*\$*$
    |\\(?:neq?|not=?|lnot|neg)[ ]*$|≠[ ]*$|\\text\{{[ ]*not[ ]*\}}[ ]*$""",
    re.IGNORECASE | re.VERBOSE,
)
_NEAR = 120
_EXAMPLE = re.compile(r"(?<![A-Za-z])e\.g\.[ ,:]*\$*$", re.IGNORECASE)
_SENTENCE_START = re.compile(r"[.!?;]\s|\n")

_BEHIND = r"[ \t]*\$*(?:\\\]|\\\))?(?:\*\*)?[ \t]*"
_HEDGE = re.compile(
    rf"""{_BEHIND}[,;.:(?!]*\s*
    (?:or|maybe|perhaps|possibly|alternatively|otherwise|actually|wait|hmm|no[,.:]|no[ ]wait|unless|another|either|
    correction|(?:and[ ])?also|but|could[ ]also[ ]be|might[ ]be|hold[ ]on|on[ ]second[ ]thought|oops|sorry|
    scratch[ ]that|it[ ](?:could|might|may|should)[ ](?:also[ ])?be|
    (?:this|that)(?:'s|[ ]is|[ ]may[ ]be|[ ]might[ ]be|[ ]could[ ]be)[ ](?:wrong|incorrect|not|false))(?![A-Za-z])""",
    re.IGNORECASE | re.VERBOSE,
)
_TAKEN_BACK = re.compile(
    rf"""{_BEHIND}(?:(?:is|was)[ ](?:definitely[ ]|certainly[ ])?(?:not|wrong|incorrect|false|a[ ]mistake)|isn't|wasn't|
    \?[ \t]*(?:\n[ ]*)?(?:no\b|i[ ](?:don't|do[ ]not|doubt)|not[ ]|wrong|incorrect))""",
    re.IGNORECASE | re.VERBOSE,
)
_SECOND = re.compile(rf"{_BEHIND}(?:,|/|and\b|or\b|&)[ ]*\$?[ ]*-?[ ]*(?:[0-9.]|\\frac|\\sqrt|\\pi)")
_ANOTHER = re.compile(
    r"""(?:it|answer|that|should|must|be|is|=|or|maybe|perhaps|possibly|actually|alternatively|wait|no|hmm|correction|
    either|another|also|:)[ ,:.]*(?:(?:is|be|should|must|would|could|might|it|the|answer|correct|one|to)[ ]+)*\$*-?[0-9]
    |\\boxed|\\frac|\\sqrt|\\pi|wrong|incorrect|not[ ](?:right|correct|sure|certain)|mistake""",
    re.IGNORECASE | re.VERBOSE,
)
_HEDGE_REACH = 80

_REASON = re.compile(
    r""",[ ](?:not|rather[ ]than|instead[ ]of)[ ].*
    |,?[ ]\(?(?:because|since|as|which|where|when|if|so|given|after|from|by|assuming|for|that)[ ].*
    |,?[ ]and[ ](?:we|that|so|thus|this|it|therefore)[ ].*|[ ][—–][ ].*|[ ]of[ ](?:an?|the)[ ][a-z ]+$""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_SUBJECT = re.compile(
    r"""(?:(?:so|thus|hence|therefore|the|final|answer|result|total|is|are|equals|equal|to|it|he|she|they|we|there|has|
    have|had|will|be|gets?|got|x|of|in|an?|number|value|costs?|amount|pays?|needs?|makes?|earns?|[A-Z][a-z]+)
    [ ,:]++)++(?=[-$\\(]?[ ]?[0-9.\\])""",
    re.VERBOSE,
)

_UNCERTAIN = re.compile(
    r"""(?<![A-Za-z])(?:or|maybe|perhaps|possibly|about|approximately|around|roughly|either|between|might|guess)
    (?![A-Za-z])""",
    re.IGNORECASE | re.VERBOSE,
)
_PART_OF_MORE = re.compile(
    r"""(?:[0-9)}\]a-zA-Z][ ]*(?:\\cdot|\\times|[-+*/^×·÷–])|[<>≤≥:^_+*/×·÷]|[0-9)}\]][ ]*[,&]
    |[0-9][^.;\n]{0,20}[ ](?:and|to|or)
    |(?<![A-Za-z])(?:steps?|equations?|eq\.?|case|part|question|problem|line|example|figure|chapter|page|option|lemma|
    theorem|section|item|number|no\.)[ ]*\(?|\([^()]*,)[ ]*$""",
    re.IGNORECASE | re.VERBOSE,
)
_GOES_ON = re.compile(
    r"[ ]*(?:hundred|thousand|million|billion|trillion|dozen)s?(?![A-Za-z])|[ ]*[\^!:]|[ ]?/", re.IGNORECASE
)
_SIGNS_BEHIND = r"(?:[ ]?(?:\\?%|\^?\\circ|°|\$+|\\\)|\\\]|\}|\)))*"
_TRAILING = re.compile(
    rf"""{_SIGNS_BEHIND}(?:[ ]?/?[ ]?
    (?!(?:and|or|so|then|which|because|but|if|while|we|to|plus|minus|times|with|from|by|is|are|as|now|next|where|since|
    when|thus|hence|therefore|multiplied|divided|added)\b)[A-Za-z][A-Za-z'-]*){{0,4}}[\s.!*_$)\]}}\\`"']*""",
    re.VERBOSE,
)
_ENDED = re.compile(r"[.!?)\]}*$`\"'][\s*_$)`\"']*$")


def is_placeholder(answer: str) -> bool:
    """Whether an answer only stands for one: empty, ``your answer``, ``...``."""
    return len(answer) <= _LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(answer) is not None


def is_doubtful(answer: str) -> bool:
    """Whether a bare answer denies or doubts what it says, or hides it: ``not 5``, ``\\phantom{5}``. Not so where
    the words are the answer: ``cannot be determined``."""
    return _IN_DOUBT.search(answer) is not None and _MEANT.fullmatch(answer) is None


def denied_before(text: str, start: int) -> bool:
    """Whether what stands at ``start`` is denied or doubted by the words of its sentence right before it."""
    near = text[max(0, start - _NEAR) : start]
    return _DENIED_BEFORE.search(_SENTENCE_START.split(near)[-1]) is not None or _EXAMPLE.search(near) is not None


def denied_after(sentence: str) -> bool:
    """Whether a sentence after "the answer is" begins by denying or doubting."""
    return _DENIED_AFTER.match(sentence) is not None


def hedged(after: str) -> bool:
    """Whether the text behind an answer takes it back or offers another one: "is wrong", ", or maybe 4"."""
    if _TAKEN_BACK.match(after):
        return True
    match = _HEDGE.match(after)
    return match is not None and _ANOTHER.search(after[: match.end() + _HEDGE_REACH], match.end() - 6) is not None


def second_value(after: str) -> bool:
    """Whether another value stands right behind an answer: ", 4", "and 4"."""
    return _SECOND.match(after) is not None


def without_reason(sentence: str) -> str:
    """A sentence up to "because ..." or ", not ..."."""
    return _REASON.sub("", sentence)


def without_subject(sentence: str) -> str:
    """A sentence from its first value on, if only plain words are before that: "She has 5 apples"."""
    subject = _SUBJECT.match(sentence)
    return sentence[subject.end() :].strip() if subject else sentence


def ends_the_text(text: str, start: int, end: int) -> bool:
    """Whether a value at ``start`` to ``end`` is what the text ends on: all of it, no part of a list, a formula or a
    heading; in a sentence that is neither a question nor in doubt, ends the text, and does not break off."""
    rest = text[end:]
    sentence = text[max(text.rfind("\n", 0, start), text.rfind(". ", 0, start), start - _NEAR, 0) : start]
    if denied_before(text, start) or "?" in rest or _UNCERTAIN.search(sentence[-40:]):
        return False
    if _PART_OF_MORE.search(sentence) or _GOES_ON.match(rest):
        return False
    trailing = _TRAILING.match(rest)
    if trailing is not None and trailing.end() == len(rest):
        return True
    return _ENDED.search(rest[-_NEAR:]) is not None and not hedged(rest)
