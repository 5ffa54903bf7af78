"""What a run uses where its settings name nothing: names of built-in components, in one table.

`dmlcore.plugins.defaults` reads it, so that dmlcore itself names no plugin. Data and trunks say by themselves whether they are
the default. `docs/reports/defaults.md` has the measurements behind the losses and the weighting.
"""

LOSSES = ("circle", "binomial_deviance", "sup_con")
TRUNKS_AT_RANDOM = {"features": "mlp"}  # in place of the default trunk, for heads, published ensembles and few-shot networks
STARTS = (  # settings of the trunks that a race on features begins with
    {"model": "identity", "learning_rate": 2e-3, "eval_every": 25},
    {"model": "mlp", "learning_rate": 2e-3, "eval_every": 25},
)
RACED_LOSSES = ("ms", "sup_con")  # of a race on pictures, beside the default losses: docs/reports/outside.md has both
RACED_RATE = 2  # times the default rate, in a race on pictures
SAMPLER = "class_balanced"
SAMPLER_OF_VIEWS = "views"  # without labels
PUBLISHED_ENSEMBLE = {  # WEL and WEDL: the prior weight of each loss, and its options
    "cross_entropy": (2.0, {"label_smoothing": 0.15, "smoothing": "others", "bias": True}),
    "triplet": (1.0, {"variant": "wedl"}),
    "binomial_deviance": (2.0, {"variant": "wedl"}),
    "proxy_nca": (3.0, {"variant": "wedl", "smoothing": "others"}),
}
LOSSES_OF_VIEWS = ("nt_xent",)
COMPRESSOR = "pca"
OPTIMIZER = "adamw"
SCHEDULE = "cosine"
WEIGHTING = "fixed"
WEIGHTING_OF_SEVERAL = "equal_gradient_norms"  # several losses on one embedding
WEIGHTING_LEARNT = "floor_square_penalty"  # of the published methods, WEL and WEDL
PAPER_BUDGETS = {  # what adapted deep embeddings took for a data set, beside what `--budget paper` has for all of them
    "mnist": {
        "epochs": 500,
        "target_epochs": 500,
        "patience": 20,
        "classifier_batch": 2048,
        "episode_patience": 2000,
        "episode_queries": 100,
        "prototype_rate": 1e-3,
        "source_samples": 2200,
        "validation_share": 3 / 11,
        "test_samples": 2000,
    },
    "isolet": {"epochs": 750, "target_epochs": 750, "episode_queries": 50, "validation_share": 1 / 6},
    "omniglot": {
        "epochs": 500,
        "target_epochs": 500,
        "patience": 70,
        "classifier_patience": 100,
        "classifier_batch": 2048,
        "episode_queries": 5,
    },
    "tiny_imagenet": {
        "epochs": 750,
        "target_epochs": 750,
        "patience": 100,
        "episode_patience": 6000,
        "episode_queries": 50,
        "validation_share": 4 / 11,
    },
}
