"""Is this answer right? Extraction, equivalence by Math-Verify's parser and sympy, in workers that can be killed.

- ``extract``: the final answer of a completion, as written
- ``tidy``, ``expression``, ``units``: what it says
- ``symbolic``, ``equal``, ``judge``: whether it equals the right one
- ``worker``, ``pool``: where that is asked, under hard limits of time and memory
- ``MathVerifier``: all of it
- ``numbers``: numbers alone, exactly and at once, for environments that need no more
- ``python -m envs.verify score FILE.jsonl``: how good a verifier is
"""

from envs.verify.extract import Extraction
from envs.verify.verdict import Verdict, check_gold
from envs.verify.verifier import Item, MathVerifier, Verifier

__all__ = ["Extraction", "Item", "MathVerifier", "Verdict", "Verifier", "check_gold"]
