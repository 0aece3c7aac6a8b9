"""Data sets: shipped in packages, simulated, or from the standard loader."""

from bayesdiv.data.breast_cancer import BreastCancer, load_breast_cancer

__all__ = ["BreastCancer", "load_breast_cancer"]
