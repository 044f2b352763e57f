"""Models, images and an upload that the tests of `refine serve` share."""

from pathlib import Path

import pytest
from PIL import Image

from refine.serve.models import Models


@pytest.fixture(scope="session")
def models():
    return Models("nuclei", device="cpu")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two crops of a micrograph; the second is narrower."""
    mahotas = pytest.importorskip("mahotas")
    whole = Image.open(Path(mahotas.__file__).parent / "demos" / "data" / "nuclear.png")
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "left.png", folder / "right.png"]
    whole.crop((0, 0, 640, 480)).save(paths[0])
    whole.crop((600, 300, 1080, 780)).save(paths[1])
    return paths


@pytest.fixture(scope="session")
def upload(models, images):
    return models.predict(images[0], "nuclei")
