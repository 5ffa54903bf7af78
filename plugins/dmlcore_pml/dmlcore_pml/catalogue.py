"""What is known about single classes of pytorch-metric-learning 2.9: defects, what has no place here, dmlcore's own form.

Classes that are not named here are taken as they are.
"""

from __future__ import annotations

OWN = {
    "AngularLoss": "angular",
    "ArcFaceLoss": "arcface",
    "CircleLoss": "circle",
    "ContrastiveLoss": "contrastive",
    "CosFaceLoss": "cosface",
    "FastAPLoss": "fast_ap",
    "GeneralizedLiftedStructureLoss": "generalized_lifted_structure",
    "HistogramLoss": "histogram",
    "IntraPairVarianceLoss": "intra_pair_variance",
    "LiftedStructureLoss": "lifted_structure",
    "MarginLoss": "margin",
    "MultiSimilarityLoss": "ms",
    "NCALoss": "nca",
    "NPairsLoss": "n_pair",
    "NTXentLoss": "nt_xent",
    "NormalizedSoftmaxLoss": "norm_softmax",
    "ProxyAnchorLoss": "proxy_anchor",
    "ProxyNCALoss": "proxy_nca",
    "RankedListLoss": "ranked_list",
    "SignalToNoiseRatioContrastiveLoss": "snr_contrastive",
    "SmoothAPLoss": "smooth_ap",
    "SoftTripleLoss": "soft_triple",
    "SphereFaceLoss": "sphereface",
    "SubCenterArcFaceLoss": "subcenter_arcface",
    "SupConLoss": "sup_con",
    "TripletMarginLoss": "triplet",
    "TupletMarginLoss": "tuplet_margin",
    "AngularMiner": "angular",
    "BatchHardMiner": "batch_hard",
    "BatchEasyHardMiner": "easy_positive",
    "DistanceWeightedMiner": "distance_weighted",
    "MultiSimilarityMiner": "multi_similarity",
    "PairMarginMiner": "pair_margin",
    "TripletMarginMiner": "semihard",
}
"""dmlcore's own loss or miner of the same paper, most of them fused."""

DEFECTS = {
    "AngularLoss": ("Negatives are not normalised: the value depends on the length of embeddings.",),
    "DynamicSoftMarginLoss": (
        "Its histogram keeps the graph of earlier batches, so that a second step fails, and is no part of its state; here it"
        " is detached after each call and saved.",
        "Every call moves that histogram, so that equal batches have different values.",
        "It can fail on duplicate embeddings (a bin of the histogram that does not exist).",
    ),
    "HistogramLoss": ("It fails on duplicate embeddings (a bin of the histogram that does not exist).",),
    "InstanceLoss": (
        "Its target is the number of a class taken for the number of a sample: the value depends on the order of the batch.",
    ),
    "NCALoss": ("It is NaN on a batch without two samples of one class.",),
    "NPairsLoss": ("It takes the first pair of each class: the value depends on the order of the batch.",),
    "P2SGradLoss": ("It scales its weights to unit length in place at every call.", "It is NaN for a zero vector."),
    "PNPLoss": ("It is not finite in half precision; here it is computed in float32 at least.",),
    "SignalToNoiseRatioContrastiveLoss": ("It is infinite for a zero vector.",),
    "SmoothAPLoss": (
        "It is wrong unless a batch has as many classes as samples of each, and depends on the order of the batch; classes of"
        " different sizes are refused.",
    ),
    "ThresholdConsistentMarginLoss": ("It ignores references, so that none are taken here.",),
    "TripletMarginLoss": ("`swap` against references looks positives up among the anchors.",),
    "TupletMarginLoss": ("Its gradient is not finite where embeddings coincide.",),
    "AngularMiner": ("It compares embeddings as they are, without scaling them to unit length.",),
    "DistanceWeightedMiner": ("It fails on a batch of one class; here such a batch has no pairs.",),
}
"""Per class, sentences for its help."""

CUBE = "It lists every positive with every negative: memory and time grow with the cube of the batch."

COSTS = {
    "DynamicSoftMarginLoss": CUBE,
    "HistogramLoss": CUBE,
    "LiftedStructureLoss": CUBE,
    "MarginLoss": CUBE,
    "NTXentLoss": CUBE,
    "PNPLoss": "It compares every pair of pairs of an anchor: memory and time grow with the cube of the batch.",
    "SignalToNoiseRatioContrastiveLoss": "It holds batch x batch x dimension numbers.",
    "SmoothAPLoss": "It compares every pair of pairs of an anchor: memory and time grow with the cube of the batch.",
    "TripletMarginLoss": CUBE,
    "TupletMarginLoss": CUBE,
}
"""Per class, what does not scale."""

UNAVAILABLE = {
    "VICRegLoss": "it compares two views of the same samples and takes no labels; dmlcore gives one view with labels",
    "ManifoldLoss": "it takes no labels: it draws a random proxy for every sample",
    "CrossBatchMemory": "it wraps a loss; dmlcore's own memory does that for every loss: --memory, dmlcore.CrossBatchMemory",
    "MultipleLosses": "it adds losses up; dmlcore's own ensemble does that: --plugins a,b, dmlcore.LossEnsemble",
    "SelfSupervisedLoss": "it wraps a loss for two views without labels; give both views the same labels instead",
    "EmbeddingsAlreadyPackagedAsTriplets": "it takes a batch for triplets in a row; dmlcore's batches have no such order",
}
"""What is listed under its name but cannot be created, and why."""

ABSTRACT = {"BaseLossWrapper", "BaseMetricLossFunction", "BaseMiner", "GenericPairLoss", "MetricLossWrapper"}

NO_REFERENCES = {"ThresholdConsistentMarginLoss"}
"""Losses that do not refuse references themselves, but are wrong with them."""

READ_NORMS = {"AngularLoss", "LargeMarginSoftmaxLoss", "SphereFaceLoss"}
"""Losses that see the length of embeddings whatever their distance is."""

LABELS_BESIDE_PAIRS = {"AngularLoss", "DynamicSoftMarginLoss", "HistogramLoss"}
"""Losses that use pairs they are given but look at labels as well: a relation does not say enough."""

DEFAULTS = {"RankedListLoss": {"margin": 0.4, "Tn": 10.0}}
"""Options that have no default there; these are the paper's."""

COUNTS = {"K", "centers_per_class", "n_bins", "neg_per_bin", "num_bins", "pos_per_bin", "sub_centers"}
"""Options that are whole numbers. Others whose default is one may be any number."""

DRAWS = {"DistanceWeightedMiner", "UniformHistogramMiner"}
"""Miners that draw."""

WHOLE_BATCH = {"HDCMiner", "UniformHistogramMiner"}
"""Miners that compare pairs of different anchors."""

HELP = {
    "allowed_neg_range": "Negatives outside these two distances do not count: (0.2, 0.8); `none`: all count.",
    "allowed_pos_range": "Positives outside these two distances do not count: (0.2, 0.8); `none`: all count.",
    "AngularLoss.alpha": "Angle in degrees.",
    "MultiSimilarityLoss.alpha": "Sharpness for positives.",
    "MultiSimilarityLoss.beta": "Sharpness for negatives.",
    "PNPLoss.alpha": "Exponent of the variant Dq.",
    "RankedListLoss.alpha": "Distance below which a negative is too near; `none`: 1 + margin / 2.",
    "SoftTripleLoss.gamma": "Temperature among the centres of a class.",
    "ArcFaceLoss.margin": "Angle in degrees.",
    "SubCenterArcFaceLoss.margin": "Angle in degrees.",
    "TupletMarginLoss.margin": "Angle in degrees.",
    "alpha": "Sharpness.",
    "angle": "Angle in degrees from which a triplet counts.",
    "anneal": "Temperature of the sigmoids that count ranks.",
    "b": "Constant of the variant Ib.",
    "base": "Offset of similarities.",
    "beta": "Boundary between near and far.",
    "centers_per_class": "Centres of each class.",
    "collect_stats": "Whether the library records statistics, which waits for the device; `none`: as its global switch says.",
    "cutoff": "Nearer negatives are weighed as if they were so far.",
    "delta": "Width of a bin; `none`: 2 / n_bins.",
    "distance": "What is compared: cosine, dot_product, lp or snr, with arguments where wanted, lp(p=1, power=2);"
    " `none`: its own.",
    "embedding_reg_weight": "Weight of the embeddings' regulariser.",
    "embedding_regularizer": "Term added for embeddings: lp(p=2), zero_mean, center_invariant, regular_face; `none`: none.",
    "epsilon": "Width of the band around the hardest pair.",
    "eps": "Added to variances.",
    "filter_percentage": "Share of the pairs that count, the hardest.",
    "gamma": "Scale.",
    "imbalance": "Share of the negatives in the value, in [0, 1].",
    "la": "Scale of the similarities to classes.",
    "lambda_minus": "Weight of negatives.",
    "lambda_plus": "Weight of positives.",
    "learn_beta": "Whether the boundary is learnt.",
    "m": "Relaxation of both boundaries.",
    "margin": "Margin, in the units of the distance, or an angle where the paper has one.",
    "margin_minus": "Similarity from which negatives count.",
    "margin_plus": "Similarity up to which positives count.",
    "min_val": "Lowest difference of distances that the histogram tells apart.",
    "momentum": "Share of a batch in the running histogram.",
    "n_bins": "Bins of the histogram; `none`: 100, or by delta.",
    "neg_eps": "How far negatives may lie from their mean, relative to it.",
    "neg_margin": "Distance up to which (similarity from which) a negative counts.",
    "neg_per_bin": "Negative pairs drawn from each bin.",
    "neg_strategy": "Which negative an anchor keeps: hard, semihard, easy or all.",
    "nonzero_loss_cutoff": "Negatives from this distance on are not drawn.",
    "nu": "Weight of the learnt boundary's own term.",
    "num_bins": "Bins of the histogram.",
    "per_class": "A boundary for each class instead of one for all.",
    "pos_eps": "How far positives may lie from their mean, relative to it.",
    "pos_margin": "Distance from which (similarity up to which) a positive counts.",
    "pos_per_bin": "Positive pairs drawn from each bin.",
    "pos_strategy": "Which positive an anchor keeps: easy, semihard, hard or all.",
    "reducer": "How values become one number: mean, sum, avg_non_zero, threshold(low=0.1), class_weighted(weights=[1, 2]),"
    " divisor, per_anchor(reducer=sum); `none`: its own.",
    "scale": "Factor of the logits.",
    "smooth_loss": "Softplus instead of the hinge.",
    "softmax_scale": "Factor of the distances.",
    "sub_centers": "Centres of each class.",
    "swap": "The distance between positive and negative where it is smaller than the anchor's.",
    "temperature": "Divisor of the similarities.",
    "Tn": "How much more a negative counts that is nearer.",
    "Tp": "How much more a positive counts that is farther.",
    "triplets_per_anchor": "`all`, or how many triplets are drawn for each anchor from torch's global generator.",
    "type_of_triplets": "Which triplets count: all, hard, semihard or easy.",
    "variant": "Ds, Dq, Iu, Ib or O, as the paper has them.",
    "weight_init_func": "How new weights are drawn, by a function of torch.nn.init: normal(std=0.1),"
    " kaiming_normal(mode='fan_out'); `none`: its own.",
    "weight_reg_weight": "Weight of the weights' regulariser.",
    "weight_regularizer": "Term added for weights: center_invariant, regular_face, lp(p=2), zero_mean,"
    " sparse_centers(centers_per_class=2); `none`: none.",
}
"""What options do, by name, or by class and name where one class means something else."""


def help_text(library: str, version: str, lines: list[str]) -> str:
    """The help of a component: what it is, what is said about it here, and `lines` between.

    Args:
        library: name of the class.
        version: of the library.
        lines: sentences.
    """
    own, defects = OWN.get(library), DEFECTS.get(library, ())
    remark = ", with known defects" if defects else ""
    cost = COSTS.get(library)
    paragraphs = [
        f"`{library}` of pytorch-metric-learning {version}{remark}.",
        " ".join([*lines, *([cost] if cost else [])]),
        f"dmlcore's own form, from the same paper, is `{own}`." if own else "",
        f"Known defects: {' '.join(defects)}" if defects else "",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
