"""Sheets that compare models."""

import torch
from helpers.tiny_run import tiny_model, tiny_run, write_dataset
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.config import to_mapping
from refine.data.build import build_dataset
from refine.files import write_json
from refine.fusion import FusionConfig
from refine.modeling.model import PanopticModel


def test_one_column_for_each_model(tmp_path, capsys):
    base = tiny_run(write_dataset(tmp_path / "data", count=3), tmp_path / "x")
    base.data.val = base.data.train
    write_json(tmp_path / "base.json", to_mapping(base))
    categories = build_dataset(base.data.train).categories
    models = []
    for n in range(2):
        torch.manual_seed(n)
        model = PanopticModel(tiny_model(0), 2, 3).eval()
        torch.nn.init.normal_(model.semantic_head.predictor.bias)
        fusion = FusionConfig(stuff_area=0)
        save_model(tmp_path / f"m{n}", SavedModel(model, categories, test_size=(64, 96), fusion=fusion))
        models.append(str(tmp_path / f"m{n}"))
    sheets = []
    for order in (models, models[::-1]):
        words = [
            "--checkpoint",
            *order,
            "--eval.max_images",
            "2",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "out"),
        ]
        main(["reproduce", "figure2", "--data", str(tmp_path / "base.json"), *words])
        assert "written: 2 sheets" in capsys.readouterr().out
        assert sorted(p.name for p in (tmp_path / "out/figure2_base").iterdir()) == ["000.png", "001.png"]
        sheets.append(pil_to_tensor(Image.open(tmp_path / "out/figure2_base/000.png")))
    words[words.index("2")] = "1"
    main(["reproduce", "figure2", "--data", str(tmp_path / "base.json"), *words])
    assert [p.name for p in (tmp_path / "out/figure2_base").iterdir()] == ["000.png"]  # none of earlier models
    first, second = (sheet[:, 40:].unfold(2, 492, 492).movedim(2, 0) for sheet in sheets)
    assert len(first) == 4
    for column, swapped in enumerate((0, 1, 3, 2)):
        assert torch.equal(first[column], second[swapped])
    assert not torch.equal(first[2], first[3])
