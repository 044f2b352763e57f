"""Tables on a dozen images: shared models, reuse of results, resumption, and rendering."""

import io
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers.tiny_run import tiny_run, write_dataset
from rich.console import Console
from rich.markdown import Markdown

from refine.checkpoint.folder import load_model
from refine.config import to_mapping
from refine.errors import RefineError
from refine.experiments.render import to_markdown, write_table
from refine.experiments.reproduce import run_table
from refine.experiments.tables import EXPERIMENTS, Row, Table, compared_with, load_table, only
from refine.files import read_json, write_json
from refine.training.config import load_run
from refine.training.run_folder import last_checkpoint
from refine.training.train import train

CONFIGS = Path(__file__).parents[2] / "configs"

SMALL = [
    "--optim.max_steps=4",
    "--model.occlusion.conv_channels=8",
    "--model.occlusion.fc_channels=8",
    "--eval.max_images=2",
]


@pytest.fixture
def base(tmp_path):
    config = tiny_run(write_dataset(tmp_path / "data"), tmp_path / "unused")
    config.data.val = config.data.train
    write_json(tmp_path / "base.json", to_mapping(config))
    return tmp_path / "base.json"


def test_rows_share_models_and_results_are_reused(base, tmp_path):
    results = run_table(load_table("table3"), base, tmp_path / "out", seeds=[3], overrides=SMALL)
    assert all(len(runs) == 1 and runs[0]["seed"] == 3 for runs in results.values())
    # Four trainings for six rows: the start, T = 0, T = 3, and the occlusion head on the frozen T = 3.
    assert len(list((tmp_path / "out/models").glob("*/seed3/last"))) == 4
    assert all("counts" in run for runs in results.values() for run in runs)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out/**/*.json")}
    again = run_table(load_table("table3"), base, tmp_path / "out", seeds=[3], overrides=SMALL)
    assert again == results
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out/**/*.json")}
    text = write_table(load_table("table3"), results, tmp_path / "t", "refine reproduce table3")
    # One seed, the same images: the interval of a row that changes nothing is 0 … 0.
    titles, same = (
        next(line for line in text.splitlines() if line.startswith(f"| {n}")) for n in ("|", "IBPP + UE")
    )
    assert [title for title in titles.split(" | ") if "Δ" in title] == [
        f"Δ {name} (95%)" for name in ("PQ", "PQ_things", "PQ_stuff")
    ]
    assert same.count(" … ") == 3
    assert "counts" not in json.loads((tmp_path / "t.json").read_text())["rows"]["IBPP + UE"][0]
    # The second stage has changed nothing of the model it began with.
    models = [load_model(path.parent).model for path in (tmp_path / "out/models").glob("*/seed3/last")]
    after = next(m for m in models if m.occlusion is not None).state_dict()
    before = next(m for m in models if m.occlusion is None and m.config.ibpp.iterations == 3)
    assert all(after[name].equal(value) for name, value in before.state_dict().items())


def test_other_validation_data_needs_no_other_training(base, tmp_path):
    table = Table("one", ["PQ"], [Row("a", train={"seed": 0})])
    content = json.loads(base.read_text())
    run_table(table, base, tmp_path / "out", seeds=[0], overrides=SMALL)
    content["data"]["val"]["json"] = str(tmp_path / "half.json")
    write_json(base, content)
    panoptic = json.loads((tmp_path / "data/panoptic.json").read_text())
    panoptic["annotations"] = panoptic["annotations"][:1]
    panoptic["images"] = [i for i in panoptic["images"] if i["id"] == panoptic["annotations"][0]["image_id"]]
    write_json(tmp_path / "half.json", panoptic)
    results = run_table(table, base, tmp_path / "out", seeds=[0], overrides=SMALL)
    assert results["a"][0]["images"] == 1
    (model,) = (tmp_path / "out/models").iterdir()
    assert len(list((model / "seed0/results").glob("*.json"))) == 2


def test_fractions_of_updates_and_learning_rate(base, tmp_path):
    rows = [Row("a", train={}), Row("b", train={}, steps=0.5, rate=0.25)]
    run_table(Table("two", ["PQ"], rows), base, tmp_path / "out", seeds=[0], overrides=SMALL)
    folders = [last_checkpoint(path) for path in (tmp_path / "out/models").glob("*/seed0")]
    optims = [read_json(folder / "run.json")["optim"] for folder in folders]
    whole, part = sorted(optims, key=lambda o: -o["max_steps"])
    assert (whole["max_steps"], part["max_steps"]) == (4, 2)
    assert part["lr"] == pytest.approx(0.25 * whole["lr"])


def test_rows_of_other_configs_and_average_precision(base, tmp_path):
    """Tables 1 and 2: each row names its config in a folder."""
    (tmp_path / "many").mkdir()
    for name in ("a", "b"):
        content = json.loads(base.read_text())
        content["model"]["box_head"]["fc_channels"] = {"a": 16, "b": 24}[name]
        write_json(tmp_path / f"many/{name}.yaml", content)
    table = Table("two", ["PQ", "AP_box", "AP_mask"], [Row("of a", "a", {}), Row("of b", "b", {})])
    results = run_table(table, tmp_path / "many", tmp_path / "out", seeds=[0], overrides=SMALL)
    assert {name: set(run["metrics"]) >= {"PQ", "AP_box", "AP_mask"} for name, (run,) in results.items()} == {
        "of a": True,
        "of b": True,
    }
    for (run,) in results.values():
        of_class = list(run["PQ_of_class"].values())
        assert sum(of_class) / len(of_class) == pytest.approx(run["metrics"]["PQ"])
    widths = sorted(
        load_model(path.parent).model.config.box_head.fc_channels
        for path in (tmp_path / "out").glob("models/*/seed0/last")
    )
    assert widths == [16, 24]
    with pytest.raises(RefineError, match=r"base\.json: row 'of a' names a config of its own; give the folder"):
        run_table(table, base, tmp_path / "out", seeds=[0])
    with pytest.raises(
        RefineError, match=r"many: is a folder, and the table takes one config; give one of a\.yaml"
    ):
        run_table(Table("t", ["PQ"], [Row("a", train={})]), tmp_path / "many", tmp_path / "out", seeds=[0])


def test_two_processes_make_a_table_together(base, tmp_path):
    (tmp_path / "t.yaml").write_text(
        "title: t\nmetrics: [PQ, AP_box]\nrows: [{name: a, train: {}}, {name: b, of: a, train: {seed: 1}}]"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [
        "--data",
        str(base),
        "--seeds",
        "1",
        "--device",
        "cpu",
        "--budget",
        "9",
        "--out",
        str(tmp_path / "out"),
    ]
    command = [*torchrun, "-m", "refine", "reproduce", str(tmp_path / "t.yaml"), *words, *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("written to") == 1
    rows = json.loads((tmp_path / "out/t_base.json").read_text())["rows"]
    assert [run["images"] for runs in rows.values() for run in runs] == [2, 2]
    assert all(0 <= run["metrics"]["AP_box"] <= 1 for runs in rows.values() for run in runs)


def test_the_budget_stops_and_the_next_call_resumes(base, tmp_path):
    table = Table("two", ["PQ"], [Row("a", train={"seed": 0})])
    words = ["--optim.max_steps=6"]
    assert run_table(table, base, tmp_path / "out", seeds=[0], overrides=words, minutes=0) == {"a": []}
    (last,) = (tmp_path / "out/models").glob("*/seed0/last")
    assert last.read_text().strip() == "step_000001"
    results = run_table(table, base, tmp_path / "out", seeds=[0], overrides=words)
    assert results["a"][0]["steps"] == 6
    assert json.loads((last.parent / "log.jsonl").read_text().splitlines()[-1])["step"] == 6
    # With no time for anything new, what is known is shown.
    more = Table("two", ["PQ"], [Row("b", train={"optim.lr": 0.5}), *table.rows])
    known = run_table(more, base, tmp_path / "out", seeds=[0, 1], overrides=words, minutes=0)
    assert known == {"b": [], "a": results["a"]}


def test_a_moved_output_folder_is_resumed(base, tmp_path, monkeypatch):
    table = Table("two", ["PQ"], [Row("a", train={"optim.lr": 0.001})], start=Row("start", train={}))
    whole = run_table(table, base, tmp_path / "whole", seeds=[0], overrides=SMALL)
    place = tmp_path / "0"
    one_update = partial(train, deadline=0)
    monkeypatch.setattr("refine.experiments.reproduce.train", lambda config, **_: one_update(config, resume=True))
    for n in range(1, 12):  # each time for one update, and then on another machine
        stopped = run_table(table, base, place, seeds=[0], overrides=SMALL)
        place = place.rename(tmp_path / str(n))
        if stopped["a"]:
            break
    assert n == 7  # one call ends the start and begins the row
    assert stopped["a"][0]["metrics"] == whole["a"][0]["metrics"]
    weights = [
        sorted(folder.glob("models/*/seed0/checkpoints/step_000004/ema.safetensors"))
        for folder in (tmp_path / "whole", place)
    ]
    assert len(weights[0]) == 2
    for one, other in zip(*weights, strict=True):
        assert one.parts[-4:] == other.parts[-4:]
        assert one.read_bytes() == other.read_bytes()


def run_of(seed, pq, **more):
    machine = {
        "processor": "cpu", "cores": 2, "threads": 1, "gpu": None,
        "python": "3", "torch": "2", "commit": "abc", "date": "2026-01-01",
    }  # fmt: skip
    return {
        "seed": seed, "metrics": {"PQ": pq, **more}, "training_minutes": 3.0,
        "images": 5, "machine": machine,
    }  # fmt: skip


def test_markdown_by_hand(tmp_path):
    table = Table("Rows", ["PQ", "SQ"], [Row("one", train={}), Row("two", train={}), Row("three", train={})])
    results = {
        "one": [run_of(0, 0.40), run_of(1, 0.44)],
        "two": [run_of(0, 0.45, SQ=0.8), run_of(1, 0.47, SQ=0.8)],
        "three": [],
    }
    lines = to_markdown(table, results, "refine reproduce x").splitlines()
    assert "| one | 42.0 ± 2.8 | – |  | 2 | 3 |" in lines
    assert "| two | 46.0 ± 1.4 | 80.0 ± 0.0 | +4.00 | 2 | 3 |" in lines
    assert "| three | – | – | – | 0 | – |" in lines
    against = to_markdown(compared_with(table, "two"), results, "refine reproduce x").splitlines()
    assert "| one | 42.0 ± 2.8 | – | -4.00 | 2 | 3 |" in against
    assert "| two | 46.0 ± 1.4 | 80.0 ± 0.0 |  | 2 | 3 |" in against
    with pytest.raises(RefineError, match=r"reference: no row 'tow'.*the rows are 'one', 'two', 'three'"):
        compared_with(table, "tow")
    assert "`refine reproduce x`" in lines
    assert "(resampled images and seeds)" in lines[-1]
    one = {"one": [run_of(0, 0.40)], "two": [run_of(0, 0.45)], "three": []}
    assert "with one seed it excludes chance in the training" in to_markdown(table, one, "refine reproduce x")
    untrained = {"one": [run_of(0, 0.40) | {"training_minutes": 0.0}], "two": [], "three": []}
    assert "(resampled images and seeds)" in to_markdown(table, untrained, "refine reproduce x")
    (tmp_path / "t_curves.png").touch()  # of trainings that are not in this table
    write_table(table, results, tmp_path / "t", "refine reproduce x")
    assert not (tmp_path / "t_curves.png").exists()
    assert (tmp_path / "t.md").read_text().splitlines() == lines
    assert json.loads((tmp_path / "t.json").read_text())["rows"]["one"][1]["metrics"]["PQ"] == 0.44
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_shows_names_as_they_are():
    names = ["[tumor](x)", "a|b", "*cell*", "_c_", "<b>d</b>", "`e`", "f\\_sem", "p_sem, T = 3", "&amp;", "~~g~~"]
    table = Table("[h] *i*", ["PQ", "PQ/__j__"], [Row(name, train={}) for name in names])
    text = to_markdown(table, {name: [] for name in names}, "refine `k`")
    console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    console.print(Markdown(text))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
    for name in [*names, "[h] *i*", "PQ/__j__", "refine `k`"]:
        assert name in shown
    assert "| p_sem, T = 3 |" in text  # what needs no escape has none


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
def test_every_table_can_be_read_and_every_row_configured(name, base):
    table = load_table(name)
    for row in [table.start, *table.rows] if table.start is not None else table.rows:
        load_run(base if row.config is None else CONFIGS / "coco" / f"{row.config}.yaml", row.overrides())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: t\nmetrics: [PQ]\nrows: [{name: a, train: {}}, {name: a, train: {}}]", "'a' occurs twice"),
        ("title: t\nmetrics: [PQ]\nrows: [{name: a, of: b}]", "no row 'b' comes before it"),
        ("title: t\nmetrics: [PQ]\nrows: [{name: a}]", "give `train` or `of`"),
        ("title: t\nmetrics: [PQ]\nrows: [{nam: a}]", "nam"),
        ("title: t\nmetrics: [PQ]\nrows: [3]", r"rows\[0\]: expected a mapping, got 3"),
        ("[1, 2", "is not valid YAML"),
        ("- 1", "is not a mapping"),
    ],
)
def test_invalid_tables_are_rejected(tmp_path, text, words):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(RefineError, match=words) as error:
        load_table(tmp_path / "t.yaml")
    assert "t.yaml" in str(error.value)


def test_selected_rows_include_the_rows_they_need():
    table = load_table("table3")
    part = only(table, ["+ UE", "baseline + UE"])
    names = ["baseline (T = 0)", "+ IBPP (T = 3)", "+ SOE", "+ UE", "baseline + UE"]
    assert [row.name for row in part.rows] == names
    assert part.start is table.start
    assert [row.name for row in only(table, ["+ IBPP (T = 3)"]).rows] == ["+ IBPP (T = 3)"]
    two = Table("t", ["PQ"], [Row("a", train={}), Row("b", train={}), Row("c", of="b")], reference="b")
    assert only(two, ["c"]).reference == "b"
    assert only(two, ["a"]).reference is None
    with pytest.raises(RefineError, match="no row 'd'; the rows are 'a', 'b', 'c'"):
        only(two, ["d"])


def test_unknown_tables_and_missing_validation_data(base, tmp_path):
    known = "exchange, exchange_heads, ibpp, rules, settings, table1, table2"
    with pytest.raises(RefineError, match=rf"no such table \(did you .*\?\); give a file, or one of {known}"):
        load_table("table9")
    with pytest.raises(RefineError, match=r"data\.val is missing"):
        run_table(
            Table("t", ["PQ"], [Row("a", train={"data.val": None})]),
            base,
            tmp_path / "out",
            seeds=[0],
            overrides=["--optim.max_steps=1"],
        )
