"""Build sdist and wheel, install the wheel in an empty environment, and predict with it.

    python .ci/install.py [EXTRA …]

Prints the sizes of the wheel and of the installed packages, first without extras, then with those named ("all"
stands for every extra but docs, build and test). Needs uv, which takes packages from its cache where it can.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = str(Path(sys.executable).with_name("uv"))
IMAGE = """
import numpy as np
from PIL import Image
rows, columns = np.mgrid[:96, :96]
Image.fromarray((60 + 120 * ((rows - 48) ** 2 + (columns - 48) ** 2 < 300)).astype(np.uint8)).save("cell.png")
"""


def main() -> None:
    extras = sys.argv[1:]
    if extras == ["all"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = sorted(set(project["optional-dependencies"]) - {"docs", "build", "test"})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(
            UV, "build", "-q", "-o", str(folder / "dist"), str(ROOT), cwd=folder
        )  # the wheel is built from the sdist
        (wheel,) = (folder / "dist").glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        check(wheel, folder / "bare", [])
        if extras:
            check(wheel, folder / "extras", extras)


def check(wheel: Path, folder: Path, extras: list[str]) -> None:
    """Install the wheel with extras into a new environment, predict an image, read a config, and print the size."""
    run(UV, "venv", "-q", "--python", sys.executable, str(folder), cwd=ROOT)
    python = folder / "bin/python"
    wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    run(UV, "pip", "install", "-q", "--python", str(python), wanted, cwd=ROOT)
    run(str(python), "-c", IMAGE, cwd=folder)
    run(str(folder / "bin/refine"), "predict", "cell.png", "-o", "out", "--checkpoint", "nuclei", cwd=folder)
    result = json.loads((folder / "out/panoptic.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in result["images"]] == ["cell.png"]
    run(str(folder / "bin/refine"), "train", "--config", "nuclei", "--print_config", cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    size = sum(path.lstat().st_size for path in packages.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"installed with {', '.join(extras) or 'no extra'}: {size / 1e9:.2f} GB, predicts")


def run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
