"""Configuration of a run: schema, composition, identity, and how mistakes in it are explained."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# In a wheel the configurations lie inside the package, in a checkout beside it.
CONFIG_FOLDER = next(
    folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir()
)
