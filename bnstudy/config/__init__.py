"""Configuration of a run: schema, composition, identity and error messages."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# In a wheel, conf/ is inside the package; in a checkout, it is next to the package.
CONFIG_FOLDER = next(
    folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir()
)
