"""The report page: what it shows (``data.py``), its tokens (``tokens.py``), the page itself (``page/``) and how the two
become one file (``inline.py``). The entry point is ``rlreason.report``."""
