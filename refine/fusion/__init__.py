"""From instances and a semantic map to one panoptic map."""
