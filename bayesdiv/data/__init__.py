"""Data sets: shipped in packages, simulated, or from the standard loader."""

from bayesdiv.data._images import Images, ImageSplit, split_images
from bayesdiv.data.breast_cancer import BreastCancer, load_breast_cancer
from bayesdiv.data.diamonds import Diamonds, load_diamonds
from bayesdiv.data.digits import load_digits
from bayesdiv.data.faces import load_faces
from bayesdiv.data.film_reviews import FilmReviews, load_film_reviews
from bayesdiv.data.mnist import load_mnist
from bayesdiv.data.names import ALPHABET, Names, decode_names, encode_names, load_names
from bayesdiv.data.returns import Returns, load_gbp_usd, load_sp500
from bayesdiv.data.simulated_experts import SimulatedExperts, simulate_experts

__all__ = [
    "ALPHABET",
    "BreastCancer",
    "Diamonds",
    "FilmReviews",
    "ImageSplit",
    "Images",
    "Names",
    "Returns",
    "SimulatedExperts",
    "decode_names",
    "encode_names",
    "load_breast_cancer",
    "load_diamonds",
    "load_digits",
    "load_faces",
    "load_film_reviews",
    "load_gbp_usd",
    "load_mnist",
    "load_names",
    "load_sp500",
    "simulate_experts",
    "split_images",
]
