"""Names of engines, formulas and formats, for option lists and menus, which must not load torch."""

NOISE_MODELS = ("poisson-gaussian", "gamma-poisson", "gaussian", "poi2void", "poi2void-paper")
"""The noise models of our blind-spot network, the default first: the keys of
`denoising.noise_models.ENGINES`."""

BASELINES = ("bm3d", "n2v", "n2n", "care", "pn2v")
"""Published methods to compare with: the keys of `denoising.baselines.BASELINES`."""

TARGETED = ("n2n", "care")
"""Those that can train on targets, a second stack beside the noisy one; `care` must."""

UNTRAINED = ("bm3d",)
"""Those that denoise without training."""

ESTIMATORS = ("mean", "map", "prior", "argmax")
"""What the engines can give between them, the default first."""

ENGINES = (*NOISE_MODELS, *BASELINES)

UNCERTAINTIES = ("thompson", "mortensen", "crlb")
"""Formulas of the torch localizer, the default first: the keys of its `uncertainty.UNCERTAINTIES`."""

TABLE_FORMATS = ("thunderstorm", "thunderstorm-1.4", "picasso", "smap")
"""Formats of tables: the keys of `table_formats.FORMATS`."""
