"""The site of documentation, by Sphinx: `make docs`.

The source folder is the repository, so that pages stay where GitHub's readers find them and every relative link is what
it is there. Home is README.md; navigation.md gives it the table of contents. The C manual is written by header.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
sys.path.insert(0, str(SITE))

import extension  # noqa: E402
import header  # noqa: E402

project = "Lockstep"
version = release = extension.library_version(ROOT)
copyright = "the authors of Lockstep; MIT licence"
root_doc = "README"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
include_patterns = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**", "examples/data/README.md"]
exclude_patterns = [
    "build", "dist", ".*", "Sources", "Tests", "benchmarks", "bindings", "include", "examples/c", "examples/swift",
    "examples/python", "docs/site"]
suppress_warnings = ["misc.highlighting_failure"]
default_role = "code"
highlight_language = "text"
nitpicky = True
nitpick_ignore_regex = [("c:identifier", r"u?int\d+_t|size_t"), ("py:.*", r".*")]

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_mock_imports = ["torch", "verl", "trl", "ray"]
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
c_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Lockstep"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    # Fonts are the reader's own: nothing is fetched from elsewhere.
    "light_css_variables": {"color-brand-primary": "#0b5fad", "color-brand-content": "#0b5fad"},
    "dark_css_variables": {"color-brand-primary": "#7ab8f5", "color-brand-content": "#7ab8f5"},
}

header.write_pages((ROOT / "include" / "lockstep.h").read_text(), ROOT / "docs" / "reference" / "c")
