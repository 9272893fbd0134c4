"""Version of bnstudy, as far as it decides which numbers are comparable."""

from bnstudy import __version__


def comparable_version(version: str) -> str:
    """Major and minor number of a version; numbers of versions that share them are comparable."""
    return ".".join(version.split(".")[:2])


VERSION = comparable_version(__version__)
