"""Parts of pages that read widgets and draw: prompts, interventions, comparisons, explanations."""
