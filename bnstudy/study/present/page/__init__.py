"""A study's page: one HTML file with everything in it, which needs no network to be read."""

from bnstudy.study.present.page.render import read_resource, render_page

__all__ = ["read_resource", "render_page"]
