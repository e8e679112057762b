"""Sides for test_bench.py: in a module of their own, so that a worker imports little."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from experiments.throughput.side import Link, Unavailable


def echo(link: Link, settings: Mapping[str, Any]) -> None:
    """Notes in a file when it worked, and in which process."""
    link.ready()
    for order in link.orders():
        begin = time.monotonic()
        time.sleep(0.05)
        with open(settings["file"], "a") as file:
            line = [settings["name"], order.index, order.variant, begin, time.monotonic(), os.getpid()]
            file.write(json.dumps(line) + "\n")
        link.report(1.0 + order.index, 7, name=settings["name"])


def absent(link: Link, settings: Mapping[str, Any]) -> None:
    raise Unavailable("it is not installed")


def broken(link: Link, settings: Mapping[str, Any]) -> None:
    link.ready()
    link.wait()
    raise RuntimeError("out of luck")
