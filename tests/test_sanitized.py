"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: the table of cases, and faults planted to be found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cpu_sanitized
import cuda_emulation
import pytest
from cases import FUSED

from dmlcore.kernels import extension

TOY = Path(__file__).parent / "toy_loss" / "toy.h"
HEADERS = sorted(path.stem for path in (cuda_emulation.CSRC / "losses").glob("*.h"))
REASON = cuda_emulation.missing() or ("" if cuda_emulation.sanitizers() else "the compiler has no sanitizer libraries")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

# The toy's sum over positives, broken: the statement that replaces it, and against what it is run.
SOUND = "for (long long k = 0; k < p.count; ++k) pull += (1 - p[k]) * (1 - p[k]);"
FAULTS = {
    "toy": (SOUND, "batch", ""),
    "beyond_scratch": (SOUND.replace("k < p.count", "k <= p.count + 2"), "batch", "use-after-poison"),
    "beyond_buffer": (SOUND.replace("k < p.count", "k <= p.count"), "references", "heap-buffer-overflow"),
    "overflow": ("pull = T(p.count * 0x7fffffffffffffff);", "batch", "signed integer overflow"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpu_sanitized")
    (folder / "losses").mkdir()
    shares = cpu_sanitized.shares(HEADERS)
    for name, (statement, _, _) in FAULTS.items():
        text = TOY.read_text()
        assert text.count(SOUND) == 1
        text = text.replace(SOUND, statement).replace("Toy", name.title().replace("_", ""))
        text = text.replace("toy_functors", f"{name}_functors").replace('"toy"', f'"{name}"')
        (folder / "losses" / f"{name}.h").write_text(text)
        shares["base"].append(name)
    return cpu_sanitized.build(folder, shares, headers=folder)


def test_every_case_is_clean(built: Path) -> None:
    levels = [level for level in cpu_sanitized.LEVELS if extension.cpu() is None or level in extension.cpu().levels()]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda level: cpu_sanitized.run(built, level), levels))
    for done in runs:
        assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    checked = {name for done in runs for name in done.stdout.removeprefix("clean:").split()}
    if len(levels) == len(cpu_sanitized.LEVELS):  # each level has a share of the losses
        assert checked == {case.id.replace(" ", "") for case in FUSED}


def test_planted_faults_are_found(built: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda name: cpu_sanitized.run(built, "base", name, FAULTS[name][1]), FAULTS)
    for (name, (_, _, words)), done in zip(FAULTS.items(), runs, strict=True):
        if words:
            assert done.returncode != 0 and words in done.stderr and f"losses/{name}.h" in done.stderr, done.stderr[-3000:]
        else:
            assert done.returncode == 0 and not done.stderr and f"clean: {name}" in done.stdout, done.stderr[-3000:]
