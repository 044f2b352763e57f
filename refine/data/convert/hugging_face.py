"""Hugging Face `datasets` of panoptic segmentation: parquet or arrow files with image, label and segments_info."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from refine.data.convert.source import LabelMap, ReadOptions, Sample, Source, SourceClass, choose_split
from refine.errors import RefineError, missing_extra, shown
from refine.files import name_problem, read_json
from refine.formats.label_image import decode

LABELS = ("label", "annotation", "mask", "panoptic")
"""Usual names of the column of id images, R + 256 G + 65536 B."""


def recognise(path: Path) -> bool:
    return bool(_files(path))


def read(path: Path, options: ReadOptions) -> Source:
    """List the rows of a split.

    Classes are named by id2label.json in the folder or in the folder above, or else are called "class N";
    `isthing` of the segments says which are stuff. Pixels whose id has no segment are void.

    Raises:
        RefineError: there is no such file or column, or pyarrow is not installed.
    """
    files = _files(path)
    if not files:
        raise RefineError(f"{path}: contains no .parquet or .arrow; give a folder of such files")
    split = choose_split(str(path), sorted(files), options.split)
    names = read_names(path)
    things: dict[int, bool] = {}
    samples: list[Sample] = []
    taken: set[str] = set()
    for file in files[split]:
        rows = _Rows(file)
        for row, (infos, name) in enumerate(rows.segments()):
            for info in infos:
                things[info["category_id"]] = bool(info.get("isthing", 1))
            if name is None or name_problem(name) or name in taken:
                name = f"{split}_{len(samples):06}{PurePosixPath(name or 'image.jpg').suffix}"
            taken.add(name)
            samples.append(
                Sample(name, partial(rows.cell, row, "image"), file, partial(_read, rows, row, infos, names))
            )
    classes = [
        SourceClass(class_name(names, n, str(path)), n, things.get(n, True)) for n in sorted(names or things)
    ]
    return Source(classes, samples)


class _Rows:
    """Rows of a parquet file, or of an arrow file as `datasets` writes it; images are read one at a time.

    Args:
        path: path of the file.

    Raises:
        RefineError: the file is damaged, lacks a column, or pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise missing_extra("data sets of Hugging Face need pyarrow", "parquet") from error
        self.path = path
        self._parquet = self._table = None
        try:
            if path.suffix == ".parquet":
                self._parquet = pq.ParquetFile(path)
                schema, meta = self._parquet.schema_arrow, self._parquet.metadata
                counts = [meta.row_group(k).num_rows for k in range(meta.num_row_groups)]
            else:
                self._table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
                schema, counts = self._table.schema, [self._table.num_rows]
        except (pa.ArrowException, OSError) as error:
            raise RefineError(f"{path}: cannot be read ({error}); download it again") from error
        self._first = [sum(counts[:k]) for k in range(len(counts))]
        self._group = -1
        label = next((name for name in LABELS if name in schema.names), None)
        if label is None or not {"image", "segments_info"} <= set(schema.names):
            raise RefineError(
                f"{path}: expected columns image, segments_info and one of {', '.join(LABELS)}, got "
                f"{', '.join(schema.names)}; choose a panoptic data set"
            )
        self.label = label
        self._named = pa.types.is_struct(schema.field("image").type)

    def segments(self) -> Iterator[tuple[list[dict[str, Any]], str | None]]:
        """Yield the segments and the file name, if known, of each row.

        Raises:
            RefineError: a row has no segments with `id` and `category_id`.
        """
        row = 0
        for group in range(len(self._first)):
            if self._parquet is not None:
                columns = ["segments_info", "image.path"] if self._named else ["segments_info"]
                table = self._parquet.read_row_group(group, columns)
            else:
                table = self._table
            names = (
                (table["image"].combine_chunks().field("path").to_pylist()) if self._named else [None] * len(table)
            )
            for infos, name in zip(table["segments_info"].to_pylist(), names, strict=True):
                if not isinstance(infos, list) or not all(is_segment(info) for info in infos):
                    raise RefineError(
                        f"{self.path}: row {row}: segments_info is {shown(infos)}; expected id and category_id"
                    )
                yield infos, name and PurePosixPath(name).name
                row += 1

    def cell(self, row: int, column: str) -> bytes:
        """Return the image file that a row holds.

        Raises:
            RefineError: the row holds something else, such as the name of a file elsewhere.
        """
        group = bisect.bisect_right(self._first, row) - 1
        if self._parquet is not None and group != self._group:
            self._table, self._group = self._parquet.read_row_group(group, ["image", self.label]), group
        assert self._table is not None
        value = self._table[column][row - self._first[group]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise RefineError(
                f"{self.path}: row {row}: {column} is {shown(value)}; save the data set with its images in the file"
            )
        return data


def is_segment(info: Any) -> bool:
    """Return whether an entry of `segments_info` has `id` and `category_id`."""
    return isinstance(info, dict) and all(type(info.get(field)) is int for field in ("id", "category_id"))


def _files(path: Path) -> dict[str, list[Path]]:
    """Return split -> files, which are named SPLIT-00000-of-00001.parquet or lie in a folder of the split."""
    files: dict[str, list[Path]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix in (".parquet", ".arrow"):
            split = re.sub(r"-?\d{4,5}(-of-\d{5}.*)?$", "", file.stem)
            files.setdefault(file.parent.name if split in ("", "data") else split, []).append(file)
    return files


def read_names(path: Path) -> dict[int, str]:
    """Return category id -> name of id2label.json, or nothing if there is no such file."""
    folder = path if path.is_dir() else path.parent
    file = next((f / "id2label.json" for f in (folder, folder.parent) if (f / "id2label.json").is_file()), None)
    content = {} if file is None else read_json(file)
    if not isinstance(content, dict) or not all(key.isdecimal() for key in content):
        raise RefineError(f"{file}: expected a mapping of category ids to names; correct it")
    return {int(key): str(name) for key, name in content.items()}


def _read(rows: _Rows, row: int, infos: list[dict[str, Any]], names: dict[int, str]) -> LabelMap:
    where = f"{rows.path}: row {row}"
    ids = decode_ids(rows.cell(row, rows.label), f"{where}: {rows.label}")
    return LabelMap(ids, segment_labels(infos, names, where))


def segment_labels(
    infos: list[dict[str, Any]], names: dict[int, str], where: str
) -> dict[int, tuple[str | None, bool]]:
    """Return `LabelMap.labels` of `segments_info`."""
    return {
        info["id"]: (class_name(names, info["category_id"], where), bool(info.get("iscrowd", 0))) for info in infos
    }


def class_name(names: dict[int, str], number: int, where: str) -> str:
    """Return the name of a class; RefineError if there are names, but not for it."""
    if not names:
        return f"class {number}"
    if number not in names:
        raise RefineError(f"{where}: category_id {number} is not in id2label.json; add it there")
    return names[number]


def decode_ids(data: bytes, where: str) -> np.ndarray:
    """Decode an id image, [H, W] int64: grey values, or R + 256 G + 65536 B.

    Raises:
        RefineError: it is damaged, too large, lossy or of another kind.
    """
    values = decode(data, where).astype(np.int64)
    if values.ndim == 3 and values.shape[2] in (3, 4):
        return np.asarray(values[..., :3] @ [1, 256, 65536])
    if values.ndim != 2:
        raise RefineError(f"{where}: has {values.shape[2]} channels; expected grey or RGB")
    return values
