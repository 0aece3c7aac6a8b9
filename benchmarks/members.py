"""Which objectives are timed, in both hosts."""

PARTICLES = (1, 16)
RENYI_ORDER = 0.5
# Every f-divergence but reverse KL, which the others are measured against.
MEMBERS = (
    "forward_kl",
    "jensen_shannon",
    "squared_hellinger",
    "pearson_chi2",
    "neyman_chi2",
    "jeffreys",
    "softened_reverse_kl",
    "alpha",
    "total_variation",
)
