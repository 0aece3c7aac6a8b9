"""Data sets: shipped in packages, simulated, or from the standard loader."""

from bayesdiv.data._images import Images, ImageSplit, split_images
from bayesdiv.data.breast_cancer import BreastCancer, load_breast_cancer
from bayesdiv.data.digits import load_digits
from bayesdiv.data.faces import load_faces
from bayesdiv.data.mnist import load_mnist

__all__ = [
    "BreastCancer",
    "ImageSplit",
    "Images",
    "load_breast_cancer",
    "load_digits",
    "load_faces",
    "load_mnist",
    "split_images",
]
