"""Ensembles of losses: the module that combines them, and what weightings and compressors are. Built-in ones are plugins.

The search for members is `dmlcore.ensemble.search`.
"""

from dmlcore.ensemble.across_ranks import distributed
from dmlcore.ensemble.compressor import Compressor
from dmlcore.ensemble.diversity import distance_diversity
from dmlcore.ensemble.ensemble import LossEnsemble
from dmlcore.ensemble.explain import explain
from dmlcore.ensemble.explanation import Explanation
from dmlcore.ensemble.matching import distance_matching, fit_by_distances
from dmlcore.ensemble.principal import PrincipalAxes, Projection, principal_axes
from dmlcore.ensemble.separation import AdversarialDiversity
from dmlcore.ensemble.student import similarity_matching
from dmlcore.ensemble.weighting import Weighting

__all__ = [
    "AdversarialDiversity",
    "Compressor",
    "Explanation",
    "LossEnsemble",
    "PrincipalAxes",
    "Projection",
    "Weighting",
    "distance_diversity",
    "distance_matching",
    "distributed",
    "explain",
    "fit_by_distances",
    "principal_axes",
    "similarity_matching",
]
