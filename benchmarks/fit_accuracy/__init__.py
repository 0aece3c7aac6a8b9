"""Accuracy of ``fit`` on real regression posteriors with raw predictors, against NUTS."""
