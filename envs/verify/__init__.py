"""Answers: finding them in a text and comparing them with the right one."""
