"""Ensembles of losses: the module that combines them, and what a weighting is. Built-in weightings are plugins."""

from dmlcore.ensemble.ensemble import LossEnsemble
from dmlcore.ensemble.weighting import Weighting

__all__ = ["LossEnsemble", "Weighting"]
