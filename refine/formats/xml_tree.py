"""Safe reading of XML."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from refine.errors import RefineError
from refine.files import read_bytes


def read_xml(path: str | Path) -> Element:
    """Read an XML file and return its root. Document types, and with them entities, are refused.

    Raises:
        RefineError: the file cannot be read, is not XML or declares a document type.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*arguments: object) -> NoReturn:
        raise RefineError(f"{path}: declares a document type, whose entities could fill the memory; remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path), True)
    except (expat.ExpatError, ValueError) as error:
        raise RefineError(f"{path}: is not valid XML ({error}); export it again") from error
    return builder.close()
