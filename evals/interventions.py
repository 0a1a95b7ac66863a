"""The interventions of an evaluation: the core's options, and their description in tables."""

from workbench.hooks.intervention_options import InterventionOptions, described, described_record

__all__ = ["InterventionOptions", "described", "described_record"]
