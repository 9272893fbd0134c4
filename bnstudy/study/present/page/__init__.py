"""Page of a study: one HTML file with everything in it, which loads nothing from the internet."""

from bnstudy.study.present.page.render import read_resource, render_page

__all__ = ["read_resource", "render_page"]
