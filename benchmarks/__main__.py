"""`python -m benchmarks [losses|evaluation|gradients ...] [--quick] [--sizes N,N] [--only TEXT] [--csv FILE] [--json FILE]`."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if any((ROOT / "dmlcore").glob("_cpu.*")):  # built in place
    sys.path.append(str(ROOT / "plugins"))
else:  # mere sources: measure the installed package
    sys.path = [path for path in sys.path if Path(path or ".").resolve() != ROOT]

from benchmarks.measuring import Row, environment, write  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = ["losses", "evaluation", "gradients", []]
    parser.add_argument("cases", nargs="*", choices=choices, help="losses and evaluation by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, no torch.compile")
    parser.add_argument("--sizes", help="numbers of samples N, comma-separated, instead of all (losses)")
    parser.add_argument("--only", help="part of a loss case's name")
    parser.add_argument("--page", type=Path, help="where gradients writes its page; docs/gradients.md by default")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--csv", type=Path, help="write the rows as CSV")
    parser.add_argument("--json", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    if "gradients" in options.cases:
        from benchmarks import gradients

        print(gradients.write(options.page, options.only))
        options.cases.remove("gradients")
        if not options.cases:
            return
    sizes = [int(n) for n in options.sizes.split(",")] if options.sizes else None
    about, rows = environment(), []

    def keep(name: str, found: list[Row]) -> None:
        write([*rows, *({"benchmark": name, **row, **about} for row in found)], options.csv, options.json)

    for name in options.cases or ["losses", "evaluation"]:
        if name == "losses":
            from benchmarks import losses

            keep_rows = functools.partial(keep, name)
            found = losses.run(options.quick, options.only, not options.no_compile, sizes, keep_rows)
        else:
            from benchmarks import evaluation

            found = evaluation.run(options.quick, 3 if options.quick else 5)
            for row in found:
                print(
                    "  ".join(
                        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
                    )
                )
        keep(name, found)
        rows += [{"benchmark": name, **row, **about} for row in found]
    print(", ".join(f"{key} {value}" for key, value in about.items()))


if __name__ == "__main__":
    main()
