"""Other people's environments as they are: each module adapts a library's or service's form to ``rlreason.types.Env``.

A library is imported when its environment is built, and is an optional extra of the package.
"""
