"""`python -m tests.campaign [--minutes M] [--only PART] [--seed S] [--fresh]`: run it, print the table, write the figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import running
from .bench import Bench
from .parts import PARTS
from .process import ROOT


def main(words: list[str] | None = None) -> int:
    """Returns the exit status: 1 if anything failed or was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, help="time for a sample of the trials (default: all trials, some hours)")
    parser.add_argument("--only", default="", metavar="PART", help=f"one part, or a trial by its key: {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default: 0)")
    parser.add_argument("--fresh", action="store_true", help="begin anew instead of going on where the last campaign stopped")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "campaign", help="folder for what trials write")
    parser.add_argument(
        "--out", type=Path, help="file of the figures (default: benchmarks/results/campaign.json for all parts)"
    )
    options = parser.parse_args(words)
    if options.only.split("/")[0] not in ("", *PARTS):
        parser.error(f"there is no part '{options.only}'; parts: {', '.join(PARTS)}")
    bench = Bench(options.work, options.seed, options.minutes)
    running.clear(bench.folder)
    facts = {"seed": options.seed, **running.versions()}
    is_one_trial = "/" in options.only
    journal = (
        running.Journal(bench.folder / "journal.jsonl", facts, options.fresh) if not is_one_trial else _no_journal(bench, facts)
    )
    if journal.is_continued:
        print(f"{len(journal.entries)} trials are done already; --fresh begins anew")
    try:
        result = running.run(bench, list(PARTS.values()), journal, options.only, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on after {len(journal.entries)} trials", file=sys.stderr)
        return 130
    finally:
        bench.close()
    print("\n" + running.table(result))
    out = options.out or (None if options.only else ROOT / "benchmarks" / "results" / "campaign.json")
    if out is not None:
        running.write(result, out)
        print(f"\nfigures: {out}")
    return 1 if result["failed"] or result["lost"] else 0


def _no_journal(bench: Bench, facts: dict[str, object]) -> running.Journal:
    """What repeats single trials keeps a journal of its own, always a new one."""
    return running.Journal(bench.folder / "again.jsonl", facts, True)


if __name__ == "__main__":
    sys.exit(main())
