"""python -m rlreason.report RUN [RUN2] [--out FILE]

One HTML file for a run: its curves, behaviours over time, and every trace to be searched, read token by token, and
compared with its siblings and with other steps. It holds all of its data, opens from disk without a network, and lies
in the run folder as ``report.html``. With a second run, both are overlaid and compared, in ``report-vs-<name>.html``.
Of a sweep's folder it makes the sweep's table again (``rlreason.sweep``).

Left out: a server, and pages for more than two runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlreason import sweep
from rlreason.analysis.sweeps import is_sweep
from rlreason.files import write_atomic
from rlreason.reporting.data import gather
from rlreason.reporting.inline import build

MAX_TOKENS = 10_000_000


def report(
    run: Path,
    other: Path | None = None,
    *,
    out: Path | None = None,
    max_tokens: int = MAX_TOKENS,
    tokenizer: str | None = None,
) -> Path:
    """Write the page and return its path.

    ``max_tokens`` bounds the tokens that are kept with their numbers, for both runs together; a page of 10 million is
    some 40 MB. Raises FileNotFoundError if a folder is no run folder, and ValueError if a file in it is damaged.
    """
    runs = [run] if other is None else [run, other]
    payloads: dict[str, bytes] = {}
    for letter, folder in zip("ab", runs, strict=False):
        began = time.perf_counter()
        found = gather(folder, max_tokens=max_tokens // len(runs), tokenizer=tokenizer)
        payloads |= {f"{letter}/{name}": content for name, content in found.payloads.items()}
        print(
            f"{folder}: {found.traces:,} traces, {found.with_tokens:,} with tokens, {time.perf_counter() - began:.1f} s"
        )
        for note in found.notes:
            print(f"  {note}")
    if out is None:
        out = run / ("report.html" if other is None else f"report-vs-{other.resolve().name}.html")
    title = " against ".join(folder.resolve().name for folder in runs)
    page = build(title, payloads).encode()
    write_atomic(out, page)
    print(f"{out}: {len(page) / 1e6:.1f} MB")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=description.partition(" RUN")[0],
        description=rest.partition("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a sweep's")
    parser.add_argument("other", type=Path, metavar="RUN2", nargs="?", help="another one, to compare it with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (default: into the run folder)")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=MAX_TOKENS,
        metavar="N",
        help="keep this many tokens with their numbers, whole groups spread over the run (default: %(default)s)",
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="a model's folder or name, if the run's own is gone")
    asked = parser.parse_args(argv)
    if asked.max_tokens < 0:
        parser.error(f"--max-tokens is {asked.max_tokens}; it must be 0 or more")
    try:
        if asked.other is None and is_sweep(asked.run):
            sweep.report(asked.run)
        else:
            report(asked.run, asked.other, out=asked.out, max_tokens=asked.max_tokens, tokenizer=asked.tokenizer)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
