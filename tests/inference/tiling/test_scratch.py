"""The semantic map of a large image in a temporary file."""

import pytest
import torch
from helpers.disk import full_disk

from refine.errors import WriteError
from refine.inference.tiling.scratch import SemanticFile


def test_a_disk_that_takes_a_part_of_the_last_row(tmp_path):
    semantic = SemanticFile((1, 100), tmp_path)
    with full_disk(150), pytest.raises(WriteError, match="cannot be written"):
        semantic.write(0, 0, torch.ones(1, 100, dtype=torch.int64), torch.ones(1, 100))
