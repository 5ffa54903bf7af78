"""Measurements: `python -m benchmarks`. Nothing here is imported by the package."""

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
if any((_ROOT / "dmlcore").glob("_cpu.*")):  # built in place
    sys.path.append(str(_ROOT / "plugins"))
else:  # mere sources: measure the installed package
    sys.path = [path for path in sys.path if Path(path or ".").resolve() != _ROOT]
