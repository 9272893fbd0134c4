"""Part of bnstudy's version that determines which numbers are comparable."""

from bnstudy import __version__


def comparable_version(version: str) -> str:
    """Return major and minor number of a version; versions that share them are comparable."""
    return ".".join(version.split(".")[:2])


VERSION = comparable_version(__version__)
