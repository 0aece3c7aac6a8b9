"""Settings of the documentation site; built by ``make docs``."""

from importlib.metadata import version as installed_version

project = "bayesdiv"
author = "The bayesdiv developers"
copyright = author
version = release = installed_version("bayesdiv")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "bayesdiv"

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
# Docstrings name shapes and defaults in prose; the signature carries the types.
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
