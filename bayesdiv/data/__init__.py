"""Data sets: shipped in packages, simulated, or from the standard loader."""

from bayesdiv.data._images import Images, ImageSplit, split_images
from bayesdiv.data.breast_cancer import BreastCancer, load_breast_cancer
from bayesdiv.data.digits import load_digits
from bayesdiv.data.faces import load_faces
from bayesdiv.data.mnist import load_mnist
from bayesdiv.data.returns import Returns, load_gbp_usd, load_sp500

__all__ = [
    "BreastCancer",
    "ImageSplit",
    "Images",
    "Returns",
    "load_breast_cancer",
    "load_digits",
    "load_faces",
    "load_gbp_usd",
    "load_mnist",
    "load_sp500",
    "split_images",
]
