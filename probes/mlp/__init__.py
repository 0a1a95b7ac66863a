"""The neurons of the MLPs."""
