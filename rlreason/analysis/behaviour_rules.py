r"""What counts as a reasoning behaviour: the rules behind ``behaviours``.

``RULES`` says of each behaviour what counts, where the idea comes from, and by which words it is known. The measured
precision belongs to the rules as they stand: whoever changes one measures again (``python -m
rlreason.analysis.behaviours``).

Left out: languages other than English, and a language model as the judge, which finds more but can't be read.
"""

from __future__ import annotations

from rlreason.analysis.cues import AnswerSwitch, Cue, Rule

_GANDHI = "Gandhi et al. 2025, Cognitive behaviors that enable self-improving reasoners, arXiv:2503.01307"

_I = (
    r"\b(?=[liw])(?:let me|let's|let us|i'll|i will|i should|i need to|i must|i can|i want to|i'd like to|i have to"
    r"|we can|we should|we need to|we must|we'll|we will|we have to)"
    r"(?: (?:just|also|quickly|now|first|at least|briefly|carefully|then))*"
)
_WORK = (
    r"(?:find|calculate|compute|determine|figure out|work out|convert|add|subtract|multiply|divide|simplify|solve"
    r"|identify|count|express|isolate|square|factor|expand|rewrite|evaluate|combine|set up|understand|estimate"
    r"|break|split)\b"
)
_MORE_WORK = (
    rf"(?:{_WORK}|(?:use|start|apply|write|look at|deal with|handle|tackle|take|get|know|sum|consider|go|list)\b)"
)

RULES: tuple[Rule | AnswerSwitch, ...] = (
    Rule(
        "verification",
        "The text says that it checks something it has already worked out (checks, verifies, substitutes back, "
        "computes it again, asks whether it makes sense), or gives the verdict of such a check.",
        f"{_GANDHI}: verification, the systematic checking for errors",
        (
            Cue(
                "check|verify|confirm|validate",
                _I + r" (?:double[- ]?check|re-?check|cross-?check|sanity[- ]check|verify|confirm|validate|check)\b"
                # Not the trying of cases, nor asking what has not been worked out yet ("let's check if x can be 0").
                r"(?! (?:each|every|all|the (?:options|cases|original)|other|small|possible|in|out)\b| [a-z]\s?=|"
                r" -?\d+\b(?!\s*[-+*/×=])| (?:if|whether)\b(?! (?:this|that|it|my|our|the (?:answer|result"
                r"|solution))(?:'s| is)?"
                r" (?:\w+ )?(?:correct|right|works?|holds?|true|makes sense)))",
            ),
            Cue("check:|verification:", r"(?:(?:sanity |quick |double[- ]|final )?check|verification):", "sentence"),
            Cue(
                "checking|verifying|confirming",
                r"(?:double[- ]?checking|re-?checking|checking|verifying|confirming)"
                r"(?:[:,]| (?:the|that|this|my|our|it|again|with|by)\b)",
                "sentence",
            ),
            Cue(
                "check|verify",
                r"(?:double[- ]?check|re-?check|check|verify) (?:the|that|this|my|our|your) (?:\w+ )?"
                r"(?:answer|result|solution|unit|sum|total|work|calculation|computation|arithmetic|product)s?\b",
                "sentence",
            ),
            Cue(
                "check|verify|sure|certain|safe|confirm",
                r"(?:just )?to (?:be (?:sure|safe|certain)|make (?:sure|certain)|double[- ]?check|verify|confirm"
                r"|check)\b",
                "sentence",
            ),
            Cue("make sure", _I + r" make sure\b(?! (?:to|(?:that )?i understand)\b)"),
            Cue("sanity", r"\bsanity[- ]check\b"),
            Cue(
                "match|agree|consistent",
                r"\b(?:which|this|that|it|result|answer|sum|total|these|they) (?:(?:indeed|also|exactly|both) )?"
                r"(?:(?:match(?:es)?|agrees? with) (?:the|our|my|what|with|up|exactly)\b|match(?:es)?[.!]"
                r"|(?:is|are) consistent\b)",
            ),
            Cue("checks out", r"\b(?:it|that|this|which|solution|answer|everything|all)(?: all)? checks out\b(?! \w)"),
            Cue(
                "back in",
                # Not the putting of one unknown's value into another's equation, which is a step of solving.
                r"\b(?:plug(?:ging)?|substitut(?:e|ing))\b[^.\n]{0,60}? back in(?:to)?\b"
                r"(?![^.\n]{0,60}\b(?:we (?:get|have|find)|to (?:get|find)))",
            ),
            Cue(
                "correct|right",
                r"(?:yes, )?(?:that's|that is|this is) (?:indeed )?(?:correct|right)(?=[.!,]| and\b|\s*$)",
                "statement",
            ),
            Cue("correct|right", r"(?<=\d[.)]\s)(?:correct|right)[.!]"),
            Cue("✓|✔|✅", r"[✓✔✅]"),
            Cue("works", r"(?:it|that|this) works[.!]", "statement"),
            Cue(
                "sense?|correct?|right?|reasonable?",
                r"\b(?:does|is) (?:that|this|it) (?:(?:really|even) )?(?:make sense|correct|right|reasonable)\?",
            ),
            Cue(
                "again|recompute|recalculate|recount|reverify|readd|re-",
                _I + r" (?:re-?(?:compute|calculate|count|verify|add)\b"
                r"|(?:compute|calculate|count|add|check|go over|go through|look at)\b[^.\n:]{0,40} again\b)",
            ),
            Cue("test", r"\btest(?:ing)? (?:the|this|our|my|that) (?:answer|result|solution|formula)\b"),
            Cue("same result|same answer", r"(?:the )?same (?:result|answer)\b", "statement"),
        ),
    ),
    Rule(
        "backtracking",
        "The text stops and turns back on what it has just said: by an interjection (Wait, Hold on, No), by calling it "
        "wrong, by owning a mistake, or by starting again or going another way.",
        f"{_GANDHI}: backtracking, the abandoning of failing approaches. Wider here: a mere 'Wait,' counts, even if "
        "nothing is changed after it",
        (
            Cue(
                "wait",
                r"wait\b(?! (?:for|time|times|until|till|list|staff|your|her|his|here|in|on|at|outside|another"
                r"|longer|and"
                r"|an?(?! (?:minute|sec|moment))|\d+)\b)",
                "sentence",
            ),
            Cue("wait", r"(?<=,\s)wait[,.!]? (?:no|that)\b"),
            Cue("hold on", r"hold on\b(?=[,.!?…—-]| a\b|\s*$)", "sentence"),
            Cue(
                "no,|no wait|no that|no this|no it|no i|no let",
                r"no,? (?:wait\b|that(?:'s| is| was| can| isn| does| would| won)|this (?:can|isn|is not)"
                r"|it (?:should|can't|doesn|isn)|i (?:should|made|mis|forgot|was|meant)|let me\b)",
                "statement",
            ),
            Cue(
                "not right|not correct|not it|not possible|wrong|incorrect|a mistake|an error",
                r"\b(?:that|this|it|something)(?:'s| is| was|s) (?:(?:definitely|clearly|also) )?"
                r"(?:not (?:right|correct|it\b|possible(?! (?:for|to)\b))|wrong\b|incorrect\b|an? (?:mistake|error)\b)",
            ),
            Cue(
                "cannot|n't|is not|does not|will not",
                r"\b(?:that|this|it|which|approach|method|assumption) (?:can't|cannot|doesn't|does not|isn't|is not"
                r"|wouldn't"
                r"|won't|will not|couldn't) (?:be (?:right|correct)|seem (?:right|correct)|make (?:any )?sense"
                r"|work\b|right\b"
                r"|correct\b|what the (?:question|problem))",
            ),
            Cue(
                "mistake|error|typo|mis|mixed|messed|forgot|overlooked|wrong|skipped",
                r"\bi(?:'ve| have)?(?: think i(?:'ve| have)?)?(?: must(?: have|'ve)?| may have| might have"
                r"| seem to have)?"
                r"(?: (?:just|also|accidentally))? (?:ma[dk]e (?:an?|some) (?:\w+ ){0,2}(?:mistake|error|typo)"
                r"|mis-?(?:read|interpret|underst|count|calculat|remember|took)\w*|mixed|messed up|forgot\b"
                r"|overlooked|was wrong"
                r"|took a wrong turn|taken a wrong turn|skipped)",
            ),
            Cue(
                "my|our",
                r"\b(?:my|our) (?:earlier|previous|first|initial|last) \w+ (?:was|is|were) (?:wrong|incorrect|off"
                r"|flawed)",
            ),
            Cue(
                "redo|rethink|reconsider|reevaluate|reread|reassess|reexamine|restart|re-|start |try again"
                "|try another|try a different"
                "|back|fix |correct ",
                _I + r" (?:re-?(?:do|think|consider|evaluate|read|assess|examine|start)\b|start (?:over|again"
                r"|from scratch|fresh)"
                r"|try (?:again\b|another (?:way|approach|method)|a different (?:approach|way|method|strategy))"
                r"|backtrack"
                r"|(?:go|step) back\b|take a step back|(?:fix|correct) (?:that|this|it|myself|my)\b)",
            ),
            Cue("scratch that|strike that|second thought", r"\b(?:scratch that|strike that|on second thought)\b"),
            Cue(
                "oops|whoops|correction|mistake|bad|sorry|not quite",
                r"(?:(?:oops|whoops|my mistake|my bad|sorry, i (?:mis|made|mixed|meant|was|should|forgot)\w*)\b"
                r"|correction:|not quite[.,])",
                "sentence",
            ),
            Cue("going back", r"going back to\b", "sentence"),
        ),
    ),
    Rule(
        "sub_goal",
        "The text announces what is to be worked out or done next, or how the problem is taken apart, before doing it.",
        f"{_GANDHI}: subgoal setting, the breaking of a problem into steps",
        (
            Cue(
                "first|second|third|next|then|finally|now|last|after that|before that|to start|to begin",
                r"(?:(?:first|second|third|last)(?:ly)?|next|then|finally|now|after that|before that|to start"
                r"|to begin(?: with)?)"
                r"(?: of all| things first)?,? (?:(?:so )?(?:i|we|you)(?:'ll|'d)? (?:(?:first|also|now|then) )?(?:"
                r"(?:(?:need to|want to|have to|will need to|must|should|can|will) )?(?:first |now |then )?"
                + _MORE_WORK
                + r"|need (?:the|a)\b|need to (?!check|verify|double|confirm|be\b|make sure|remember)\w+)|"
                + _WORK
                + r"|let(?:'s| us| me) (?!verify|check|double|see\b|confirm|test|try|say|assume|suppose"
                r"|denote|call|be\b|x\b)\w+)",
                "sentence",
            ),
            Cue(
                "need to|have to|must|should|first",
                r"(?<!\bif\s)(?<!\bwhen\s)\b(?:i|we|you)(?:'ll|'d)? (?:(?:first|also|then|now|just|still) )*"
                r"(?:(?:(?:need|have) to|must|should) "
                r"(?:(?:first|now|then|also) )*(?:"
                + _WORK
                + r"|know (?:how|what)\b|revisit\b|start\b)|first "
                + _WORK
                + ")",
            ),
            Cue(
                "let",
                r"\blet(?:'s| us| me) (?:(?:first|now|next) )*(?:(?:start|begin) (?:by|with)\b|tackle\b|handle\b|"
                + _WORK
                + r"|(?:do|solve|go|take|work|think)\b[^.\n]{0,40} step[- ]by[- ]step)(?![^.\n]{0,30}\bagain\b)",
            ),
            Cue("step", r"(?:#+\s*|\*\*)?step \d+\b(?=\s*[:.)—–-]|\*\*)", "sentence"),
            Cue(
                "step|task|goal",
                r"\b(?:the|my|our) (?:first|next|second|third|last|final) (?:step|task|goal) (?:(?:is|would be"
                r"|will be)(?: to\b|:| \w+ing\b)|involves\b)",
            ),
            Cue("1.|2.|3.|4.|1)|2)|3)|4)", r"\d+[.)] \**" + _WORK, "sentence"),
            Cue(
                "break|split",
                r"\b(?:break(?:ing)? (?:(?:this|it|that|things|(?:the|this) (?:\w+ )?(?:problem|question|task"
                r"|calculation|expression))"
                r" down\b|down the problem|(?:this|the) (?:problem|question|task) into\b|it into (?:its|smaller"
                r"|steps|parts))"
                r"|split(?:ting)? (?:this|it|(?:the|this) (?:problem|question|task|calculation)) (?:up )?into (?:\w+ )?"
                r"(?:parts|cases|steps|pieces))",
            ),
            Cue(
                "to find|to get|to solve|to calc|to comp|to determine|to figure|to answer|to resolve|to work",
                r"(?:in order )?to (?:find|get|solve|calculate|compute|determine|figure out|answer|resolve|work out)\b"
                # Not how such a thing is done in general ("to find a sum, you simply add the numbers").
                r"[^.\n]{0,100}?, (?:you(?:'ll)? (?:first|need|must|have to)\b|(?:(?:i|we)(?:'ll|'d)?|let's|let us) "
                r"(?!have (?!to)|had|got|get|know|(?:(?:can|would) )?(?:see|simply|just|use)\b)\w+)",
                "sentence",
            ),
            Cue("plan|strategy|goal", r"\b(?:my|the|our) (?:plan|strategy|goal) (?:is|will be) to\b"),
            Cue("start|begin", r"(?:" + _I + r"|\b(?:we|i)) (?:start|begin) (?:by|with)\b"),
            Cue("want to", r"\b(?:we|i) want to (?:know|find|compute|determine)\b"),
        ),
    ),
    Rule(
        "enumeration",
        "Cases or candidates are taken up in turn: numbered cases, values or combinations tried, options gone through, "
        "possibilities listed.",
        f"search over cases, by which Countdown is solved, the task of {_GANDHI}; not one of their four behaviours",
        (
            Cue(
                "case|scenario|possibility|attempt|option",
                r"(?:\*\*)?(?:case|scenario|possibility|attempt|option) (?:\d+|[a-e]|\(?[ivx\d]+\))\s*(?:\*\*)?[:.—)]",
                "sentence",
            ),
            Cue("option", r"\boptions? \(?[a-e]\)? (?:gives|is|says|yields|would|states|can)\b"),
            Cue("try|testing", r"(?:try|trying|testing) (?:with )?(?:[a-z]\s?=\s?)?-?\d", "sentence"),
            Cue(
                "try",
                r"(?:"
                + _I
                + r"|\b(?:we|i) could) try (?:-?\d|[a-z]\s?=|(?:a few|different|some|small|each|every|all|both|with"
                r"|using|adding"
                r"|subtracting|multiplying|dividing|combin\w+|values?|numbers?|the (?:first|second|other|next|case"
                r"|option|number|value)"
                r"|another (?:number|value|pair|combination|one))\b)",
            ),
            Cue(
                "test |guess |check ",
                _I + r" (?:test|guess|check) (?:-?\d+\b(?!\s*[-+*/×=])|[a-z]\s?=|(?:small|some|different|values|each"
                r"|every|all"
                r"|possible)\b)",
            ),
            Cue(
                "case",
                r"\b(?:(?:consider(?:ing)?|examine|there are) (?:the )?(?:two|three|four|both|different|possible"
                r"|each|all|following"
                r"|several|\d+) (?:(?:possible|separate) )?cases|consider the case|(?:two|three|four"
                r"|\d+) cases to consider)\b",
            ),
            Cue(
                "list |enumerat|through ",
                r"(?:(?:"
                + _I
                + r"|\bwe) (?:enumerate\b|list (?:out|all|each|every|the|possible)\b|(?:go|run) through (?:all|each"
                r"|every|them"
                r"|the (?:options|cases|possibilities|choices|numbers|candidates|values))\b)|\benumerating\b)",
            ),
            Cue("one by one", r"\b(?:through|try|test|check|consider)\b[^.\n]{0,40} one by one\b"),
            Cue("what if", r"\bwhat if (?:we|i) (?:use|try|take|add|multiply|combine)\b"),
            Cue(
                "=",
                r"\b(?=[ifwa])(?:if|for|when|at) ([a-z])\s?=\s?-?\d+[^\n]{1,100}\b(?:if|for|when|at) \1\s?=\s?-?\d+",
            ),
            Cue("=", r"\b([a-z])\s?=\s?-?\d+\s*:[\s\S]{1,80}?\b\1\s?=\s?-?\d+\s*:"),
            Cue("then", r"\b([a-z])\s?=\s?-?\d+\b[^\n]{1,60}?\bthen \1\s?=\s?-?\d+"),
            Cue("suppose|assume|say", r"(?:let's )?(?:suppose|assume|say)(?: that)? [a-z]\s?=\s?-?\d", "sentence"),
            Cue("suppose|assume", r"(suppose|assume)\b[^\n]{5,200}[.;] (?:now )?\1\b", "sentence"),
            Cue("maybe", r"maybe -?\d[^.\n?]{0,30}\?", "sentence"),
            Cue(
                "possible",
                r"\b(?:the|all) possible (?:\w+ )?(?:pairs|values|combinations|choices|options|cases|triples"
                r"|triplets) (?:are|include)\b",
            ),
            Cue("possibilities", r"\bpossibilities(?: are)?:"),
            Cue(
                "attempt|try|guess|case|possib",
                r"(?:first|second|third|next) (?:attempt|try|guess|case|possibility)\s*:",
                "sentence",
            ),
            Cue("second case", r"\bin the first case\b[\s\S]{1,200}\bin the second case\b"),
            Cue("trying", r"\btrying (?:each|all)\b"),
        ),
    ),
    AnswerSwitch(
        "answer_switch",
        "The text states an answer (as thought.stated_answers reads it) that differs from the one it stated before.",
        "after Wang et al. 2025, Thoughts are all over the place, arXiv:2501.18585, who count switches of thought",
    ),
    Rule(
        "aha",
        "The text marks a sudden insight: aha, oh I see, now I understand, I just realised.",
        "DeepSeek-AI 2025, DeepSeek-R1, arXiv:2501.12948, section 2.2.4 and table 3: the 'aha moment'",
        (
            Cue("aha|ah|eureka", r"\b(?:aha\b(?=[!,.:…]| moment)|ah[- ]ha\b|eureka\b(?=[!,.]))"),
            Cue(
                "oh|ah",
                r"(?<!\w)(?:oh|ooh|ah+)\b[,!.…]* (?:(?:i (?:see|get it|got it|understand|think i (?:see|get"
                r"|understand))|right(?! on\b)|yes"
                r"|of course|wow|okay|ok|got it)\b|(?:now )?that makes sense|that's (?:it|why)\b)",
                "sentence",
            ),
            Cue("oh!|ah!|ahh!", r"(?:oh|ah+)!", "sentence"),
            Cue(
                "realis|realiz|notice",
                r"\bi (?:(?:(?:just|now|suddenly|finally) )+(?:realis|realiz|notic)ed?|(?:realis|realiz)ed? now)\b",
            ),
            Cue(
                "now",
                r"\b(?:i see (?:it )?now|now i (?:see(?! it as)|understand|get it|realise|realize)"
                r"|i (?:think i )?(?:get|got"
                r"|understand) it now)\b",
            ),
            Cue(
                "clicks|clicked|hit me|hits me|dawn",
                r"\bit (?:(?:just|suddenly|finally|now) )*(?:clicks|clicked|hit me|hits me|dawn(?:s|ed) on me)\b",
            ),
            Cue("got it", r"(?:(?<=[.!?…]\s)got it!|\bi've got it\b(?=[:.,!]))"),
            Cue("it!", r"that's it!", "sentence"),
        ),
    ),
)
