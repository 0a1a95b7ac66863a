"""Hook points, captures of a run, and interventions in it."""
