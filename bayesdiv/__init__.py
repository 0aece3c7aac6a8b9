"""Bayesian inference with the divergence chosen by name."""
