"""Data sets: shipped in packages, simulated, or from the standard loader."""

from bayesdiv.data._images import Images, ImageSplit, split_images
from bayesdiv.data.arctic import Speech, load_arctic_speech
from bayesdiv.data.breast_cancer import BreastCancer, load_breast_cancer
from bayesdiv.data.diamonds import Diamonds, load_diamonds
from bayesdiv.data.digits import load_digits
from bayesdiv.data.faces import load_faces
from bayesdiv.data.film_reviews import FilmReviews, load_film_reviews
from bayesdiv.data.mnist import load_fashion_mnist, load_mnist
from bayesdiv.data.names import ALPHABET, Names, decode_names, encode_names, load_names
from bayesdiv.data.returns import Returns, load_gbp_usd, load_sp500
from bayesdiv.data.simulated_experts import SimulatedExperts, simulate_experts
from bayesdiv.data.voice import (
    SpeechEGG,
    Utterance,
    VoiceSettings,
    add_noise,
    load_speech_egg,
    polarity_skewness,
    prepare_speech_egg,
    read_speech,
    simulate_babble,
    simulate_voices,
    split_by_speaker,
)
from bayesdiv.data.windows import overlap_add, pad_for_windows, strided_windows

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
    "Speech",
    "SpeechEGG",
    "Utterance",
    "VoiceSettings",
    "add_noise",
    "decode_names",
    "encode_names",
    "load_arctic_speech",
    "load_breast_cancer",
    "load_diamonds",
    "load_digits",
    "load_faces",
    "load_fashion_mnist",
    "load_film_reviews",
    "load_gbp_usd",
    "load_mnist",
    "load_names",
    "load_sp500",
    "load_speech_egg",
    "overlap_add",
    "pad_for_windows",
    "polarity_skewness",
    "prepare_speech_egg",
    "read_speech",
    "simulate_babble",
    "simulate_experts",
    "simulate_voices",
    "split_by_speaker",
    "split_images",
    "strided_windows",
]
