"""Data sets for supervised training: demonstrations to imitate and comparisons to judge by. One module a source."""
