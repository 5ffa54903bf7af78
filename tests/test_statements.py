"""The two statements of a fused loss: where they differ, the header and the Python file are both named."""

from __future__ import annotations

import inspect

import pytest

from dmlcore import plugins
from dmlcore.authoring import bench
from dmlcore.errors import ConfigError, PluginError
from dmlcore.losses import create
from dmlcore.testing import check_loss, naming_both
from dmlcore.testing.statements import where_both_stand


class Wrong(plugins.find("loss", "ms").component):  # type: ignore[misc]
    """Another value than its definition."""

    by_rows = False

    def forward(self, embeddings, labels, **references):
        return 2 * super().forward(embeddings, labels, **references)


def test_both_files_are_named() -> None:
    loss = create("ms")
    assert where_both_stand(loss) == (
        f"The formula of 'ms' stands in csrc/losses/ms.h and in {inspect.getsourcefile(type(loss))}:"
        " if one was changed, change the other too."
    )
    assert where_both_stand(create("l2_norm")) == ""
    with pytest.raises(AssertionError, match=r"(?s)Scalars are not close.*csrc/losses/ms\.h"), naming_both(loss):
        raise AssertionError("Scalars are not close!")


def test_a_one_sided_edit_is_told_so() -> None:
    if not Wrong().is_fused:
        pytest.skip(Wrong().why_not_fused)
    with pytest.raises(PluginError, match=r"forward and reference differ .* stands in csrc/losses/ms\.h and in .*\.py"):
        check_loss(Wrong)
    with pytest.raises(ConfigError, match=r"the fused form of ms gives .* stands in csrc/losses/ms\.h and in .*\.py"):
        bench(Wrong, samples=16, dimensions=4, seconds=0.01)
