"""The public names of `import refine`."""

import subprocess
import sys
from pathlib import Path

import pytest

import refine

PUBLIC = {
    "Categories", "Category", "FusionConfig", "Instances", "PanopticQuality", "PanopticResult", "Predictor",
    "RefineError", "Segment", "Targets", "adapters", "evaluate", "fuse", "load_model", "train",
}  # fmt: skip


def test_public_names() -> None:
    assert set(refine.__all__) == PUBLIC
    assert set(dir(refine)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(refine, name).__name__.split(".")[-1] == name
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        refine.predict  # noqa: B018
    assert (Path(refine.__file__).parent / "py.typed").exists()


def test_the_package_and_its_errors_need_no_torch() -> None:
    names = "refine.RefineError, refine.Category, refine.PanopticQuality"
    code = f"import sys, refine; {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
