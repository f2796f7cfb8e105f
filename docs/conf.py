# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site that `make docs` builds, from these pages and from what the collection says of itself."""

project = "holdfast"
extensions = ["myst_parser", "sphinx_antsibull_ext"]
html_theme = "sphinx_ansible_theme"
html_show_copyright = False
# Pages link to each other's sections.
myst_heading_anchors = 3
# Labels of Ansible's own documentation, which a build without a network does not have.
suppress_warnings = ["ref.ref"]
