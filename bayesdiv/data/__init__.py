"""Data sets: shipped in packages, simulated, or from the standard loader."""

from bayesdiv.data._images import Images, ImageSplit, check_disjoint, split_images
from bayesdiv.data.breast_cancer import BreastCancer, load_breast_cancer
from bayesdiv.data.digits import load_digits

__all__ = [
    "BreastCancer",
    "ImageSplit",
    "Images",
    "check_disjoint",
    "load_breast_cancer",
    "load_digits",
    "split_images",
]
