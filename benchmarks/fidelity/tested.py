"""What is no equation: networks, pictures and procedures, each with the tests that compare it with its reference. A test that
is gone makes its row differ.
"""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks.fidelity.rows import Row, Status

TESTS = Path(__file__).parents[2] / "tests"
_TESTED: list[tuple[str, str, str, Status, str, tuple[str, ...]]] = [
    (
        "crops of training and test pictures",
        "torchvision, as the authors' code uses it",
        "`crops dml`",
        "agrees",
        "the pixels of torchvision within its rounding",
        ("test_crops::test_training_crops_beside_torchvision", "test_crops::test_the_test_view_beside_torchvision"),
    ),
    (
        "BN-Inception",
        "the published file of weights",
        "trunk `bn_inception`",
        "documented",
        "names, shapes and number of weights of the file; the file itself was not at hand",
        ("test_bn_inception::test_size_and_names", "test_bn_inception::test_weights_of_a_file"),
    ),
    (
        "frozen BatchNorm, trained stages",
        "the authors' training code",
        "`--freeze-norm`, `--trainable-stages`",
        "agrees",
        "frozen parts keep their bits",
        ("test_freezing::test_normalisation_stays", "test_freezing::test_only_the_last_stages_train"),
    ),
    (
        "few-shot adaptation of ooDML",
        "Milbich et al. 2021, section 5",
        "`dmlcore ood run --shots`: beta fixed, support augmented, no cut",
        "agrees",
        "as the authors' code runs, which learns no beta",
        (
            "test_ood_adapting::test_the_boundary_and_the_cutoff_are_as_said",
            "test_ood_adapting::test_support_is_changed_at_random_before_every_step",
        ),
    ),
    (
        "swapping and removal of classes",
        "Milbich et al. 2021, section 3",
        "`dmlcore splits ood`",
        "agrees",
        "first swap by hand, monotone FID, sizes of both sides",
        ("test_swapping::test_the_first_swap_by_hand", "test_swapping::test_removal_leaves_enough_classes"),
    ),
    (
        "import of published splits",
        "the authors' file for Cars-196",
        "`dmlcore splits import`",
        "agrees",
        "eight FIDs and all counts of the file, where it is at hand",
        ("test_field_data::test_the_published_splits_of_cars",),
    ),
    (
        "unit norm of WEDL_C's output",
        "the authors' demo compares raw outputs",
        "served embeddings have unit norm",
        "documented",
        "on emoji R@1 45.85 raw, 45.50 at unit norm (guide, Ensembles)",
        (),
    ),
]


def rows() -> list[Row]:
    """A row for each part."""
    built = []
    for component, source, ours, status, evidence, tests in _TESTED:
        names = ", ".join(f"`{name.partition('::')[2]}`" for name in tests)
        result: Status = status if all(map(_is_there, tests)) else "differs"
        built.append(Row(component, source, ours, result, f"{evidence}. Tests: {names}" if tests else evidence))
    return built


def _is_there(name: str) -> bool:
    """Whether a test of a file of tests exists."""
    file, _, function = name.partition("::")
    path = TESTS / f"{file}.py"
    functions = ast.walk(ast.parse(path.read_text())) if path.exists() else ()
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in functions)
