"""Speed beside the peers, and accuracy of ``fit``: ``python -m benchmarks --help``."""
