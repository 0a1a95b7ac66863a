"""What the residual stream says about the output, under one name: direct logit attribution, and the logit lens."""

from probes import attribution, lens
from probes.attribution import LogitAttribution, logit_attribution
from probes.lens import LogitLens, logit_lens

HOOKS = tuple(dict.fromkeys((*attribution.HOOKS, *lens.HOOKS)))
"""What to capture for `logit_attribution` and `logit_lens`."""

__all__ = ["HOOKS", "LogitAttribution", "LogitLens", "logit_attribution", "logit_lens"]
