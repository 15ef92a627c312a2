"""The drafter that lies in the repository is one that this revision loads, for the embedded target as installed."""

from pathlib import Path

import models
from models.drafters.artifact import check_fit, read_artifact
from models.sources import load_target

RELEASED = Path(models.__file__).parent / "released" / "smollm2-135m"


def test_it_fits_the_embedded_target():
    artifact = read_artifact(RELEASED)
    check_fit(artifact, load_target("smollm2-135m", "float32"), RELEASED)
    assert artifact.config.width == 32


def test_it_is_small_and_tells_how_it_was_made():
    assert sum(file.stat().st_size for file in RELEASED.iterdir()) <= 40e6
    card = (RELEASED / "README.md").read_text()
    assert "python -m train --config release.yaml" in card
