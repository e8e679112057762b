"""Verifier environments: problems, and verdicts on what the policy wrote.

One module for each environment. They import only ``rlreason.types``; Hydra joins the two packages
(``_target_: envs.arithmetic.Arithmetic`` in ``conf/env/``), and ``rlreason`` never imports this one.
"""
