"""What the residual stream says about the output: lenses, and attribution of a logit."""
