"""CVAT for images 1.1: XML with run lengths of masks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

from refine.formats.counts import run_counts
from refine.formats.results.saver import ImageResult, Part

if TYPE_CHECKING:
    from refine.structures import Categories

FORBIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML cannot hold, even escaped; names may contain them."""


def encode(item: ImageResult) -> Iterator[bytes]:
    """Yield the attributes of one `mask` element per segment."""
    masks = []
    for segment in item.result.segments:
        x, y, width, height = segment.bbox
        counts = run_counts(item.crop(segment).reshape(-1))
        masks.append(
            {
                "label": item.result.name(segment),
                "source": "auto",
                "occluded": "0",
                "rle": ", ".join(map(str, counts.tolist())),
                "left": str(x),
                "top": str(y),
                "width": str(width),
                "height": str(height),
                "z_order": "0",
            }
        )
    yield json.dumps(masks).encode()


def join(parts: Iterable[Part], categories: Categories) -> Iterator[bytes]:
    """Yield the XML of all images; CVAT finds an image by its name."""
    meta = Element("meta")
    labels = SubElement(SubElement(meta, "task"), "labels")
    for category in categories:
        label = SubElement(labels, "label")
        color = "#{:02x}{:02x}{:02x}".format(*category.color)
        for tag, text in (("name", category.name), ("color", color), ("type", "mask")):
            SubElement(label, tag).text = text
        SubElement(label, "attributes")
    yield b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n' + _bytes(meta)
    for number, (image, masks) in enumerate(parts):
        size = {"width": str(image["width"]), "height": str(image["height"])}
        element = Element("image", {"id": str(number), "name": image["file_name"]} | size)
        for attributes in masks:
            SubElement(element, "mask", attributes)
        yield _bytes(element)
    yield b"</annotations>\n"


def _bytes(element: Element) -> bytes:
    return FORBIDDEN.sub("\ufffd", tostring(element, encoding="unicode")).encode() + b"\n"
