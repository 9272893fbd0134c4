from pathlib import Path

import pytest

from tests.conftest import Compose
from tests.study.studies import Studies


@pytest.fixture
def studies(composed: Compose, tmp_path: Path) -> Studies:
    """Writes runs into tmp_path / "study"."""
    return Studies(composed, tmp_path / "study")
