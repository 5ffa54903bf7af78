"""The compiled CUDA extension: what nvcc made of the kernels, on a machine that need not have a GPU. Register spills are errors
of the build itself (DML_STRICT=1)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cases import ON_CUDA

from dmlcore.kernels import extension

pytestmark = [
    pytest.mark.skipif(os.environ.get("DML_CUDA") == "0", reason="DML_CUDA=0: built without CUDA"),
    pytest.mark.skipif(extension.cuda() is None and shutil.which("nvcc") is None, reason="built without CUDA: no nvcc"),
]


@pytest.fixture
def module():
    module = extension.cuda()
    assert module is not None, f"nvcc is here, but {extension.why_not('cuda')}; install again to build it"
    return module


def test_lists_every_functor_with_the_options_of_the_cpu(module) -> None:
    listed = module.functors()
    assert {case.create().functor_call().functor for case in ON_CUDA} <= set(listed)
    if extension.cpu() is not None:
        on_cpu = extension.cpu().functors()
        assert listed == {name: on_cpu[name][: len(entry)] for name, entry in listed.items()}


def test_targets(module) -> None:
    if "DML_CUDA_ARCHS" not in os.environ:
        assert module.archs == "80;90;100+PTX"
    assert module.runtime_version >= 12000


def test_size_and_libraries(module) -> None:
    path = Path(module.__file__)
    assert path.stat().st_size < 20 << 20
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    needed = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    libraries = [line for line in needed.splitlines() if "NEEDED" in line]
    assert libraries and not any(name in line for line in libraries for name in ("libcuda", "libtorch", "libc10")), needed


def test_refuses_what_it_cannot_run(module) -> None:
    with pytest.raises(ValueError, match="no functor 'quadruplet'"):
        module.Pass(1, None, 1, [("quadruplet", [0.1], 0, 0)], workspace=1 << 20)
    with pytest.raises(ValueError, match="takes the options 'margin'"):
        module.Pass(1, None, 1, [("triplet_all", [], 0, 0)], workspace=1 << 20)


def test_the_ranking_is_built(module) -> None:
    assert module.Ranking32 is not module.Ranking64 and module.most_compared == 16
    assert [module.ranking_stride(width) for width in (0, 1, 16, 17, 512)] == [16, 16, 16, 32, 512]
