"""Notes put together from sentences, sound ones and ones with a known fault, about any topic of ``envs.notes``.

They are no literature. They differ in what the rule of ``envs.notes`` looks at, and their quality varies with the
numbers of sentences drawn, so that a reward model can learn that rule from comparisons of them, roughly.

Left out: texts by language models; ``envs.data.traces`` compares those.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from envs.notes import TOPICS

_PLACES = ("villages", "harbours", "kitchens", "schools", "gardens", "workshops", "markets", "mountains", "islands")
_TIMES = ("mornings", "winters", "summers", "evenings", "holidays", "weekends", "journeys", "storms", "birthdays")
_QUALITIES = ("gentle", "useful", "surprising", "simple", "ancient", "bright", "precious", "quiet", "generous")
_SENTENCES = """
{Topic} has a long history in {place} and busy cities alike.
Many families remember {topic} from {time} when grandparents told stories.
There is something {quality} about {topic} that photographs rarely show.
Experts measure {topic} carefully, yet beginners enjoy it without numbers.
A little {topic} can change an ordinary afternoon completely.
Travellers often mention {topic} after visiting distant {place}.
Good {topic} needs time, attention and steady hands.
Neighbours share {topic} because sharing makes small things larger.
Scientists still ask {quality} questions about {topic} today.
Children learn quickly that {topic} rewards patient practice.
Old books describe {topic} with {quality} drawings and careful notes.
During long {time} nothing feels better than {topic}.
The first step with {topic} is watching somebody skilled.
Prices rise and fall, but {topic} keeps its value.
Local clubs in {place} welcome everyone who loves {topic}.
Doctors believe that {topic} helps people rest.
Without {topic} our {time} would seem colder and shorter.
Every culture has given {topic} its own songs, names and customs.
Modern tools make {topic} easier, safer and cheaper.
Careful planning keeps {topic} from becoming expensive.
Artists return to {topic} for colour, rhythm and comfort.
Teachers use {topic} to explain difficult ideas in {quality} ways.
Mistakes with {topic} are common, and usually harmless.
Weather decides how {topic} turns out in most {place}.
Friends who disagree about politics still agree about {topic}.
The best advice on {topic} fits on a single page.
Engineers admire the {quality} structure hidden inside {topic}.
Some prefer {topic} alone; others want company, laughter and noise.
A museum near the river shows how {topic} developed over centuries.
Writing about {topic} takes fewer words than doing it.
"""
SENTENCES = tuple(_SENTENCES.strip().split("\n"))

_OPENINGS = ("Certainly! ", "Sure, here is a note! ", "I'm glad you asked! ", "Here is your short note:\n\n")
_SHOUTS = (" AMAZING!!", " WONDERFUL STUFF!!", " You will LOVE IT!!!")
_LISTS = ("\n- fun\n- easy\n- free", "\n* tips\n* tricks\n* more", "\n1. start\n2. repeat\n3. stop")


def _sentences(rng: random.Random, topic: str, least: int, most: int) -> list[str]:
    """Different sentences about the topic, in a random order."""
    return [
        template.format(
            topic=topic,
            Topic=topic.capitalize(),
            place=rng.choice(_PLACES),
            time=rng.choice(_TIMES),
            quality=rng.choice(_QUALITIES),
        )
        for template in rng.sample(SENTENCES, rng.randint(least, most))
    ]


def sound(rng: random.Random, topic: str) -> str:
    return " ".join(_sentences(rng, topic, 4, 7))


def brief(rng: random.Random, topic: str) -> str:
    return " ".join(_sentences(rng, topic, 1, 3))


def rambling(rng: random.Random, topic: str) -> str:
    return " ".join(_sentences(rng, topic, 10, 20))


def off_topic(rng: random.Random, topic: str) -> str:
    return sound(rng, rng.choice([other for other in TOPICS if other != topic]))


def repetitive(rng: random.Random, topic: str) -> str:
    return " ".join(_sentences(rng, topic, 1, 3) * rng.randint(2, 5))


def cut_off(rng: random.Random, topic: str) -> str:
    """Without its last words."""
    words = sound(rng, topic).split(" ")
    return " ".join(words[: -rng.randint(1, 4)]).rstrip(".,;")


def pet_phrased(rng: random.Random, topic: str) -> str:
    """With an opening, shouting or a list that nobody asked for."""
    text = sound(rng, topic)
    return rng.choice([rng.choice(_OPENINGS) + text, text + rng.choice(_SHOUTS), text + rng.choice(_LISTS)])


KINDS: Mapping[str, Callable[[random.Random, str], str]] = {
    "sound": sound,
    "brief": brief,
    "rambling": rambling,
    "off_topic": off_topic,
    "repetitive": repetitive,
    "cut_off": cut_off,
    "pet_phrased": pet_phrased,
}
"""Ways to write a note, by name: one without a fault, and the faults."""
