"""A folder of features says which encoder made them."""

import json
import shutil

import pytest

from mrlib import open_dataset
from mrlib.data.check import check
from mrlib.data.recipes import RECORD, differing, read_recipe
from tests.support.files import line, moment_detr

RECIPE = {"encoder": "fake", "clip_s": 1.0, "width": 4}


def test_settings_have_the_recipe_of_the_folder_and_clips_its_length(tmp_path):
    root = moment_detr(tmp_path, [line(1, duration=10)])  # ten rows, of 1 s
    shutil.rmtree(root / "slowfast_features")
    (root / RECORD).write_text(json.dumps(RECIPE))
    opened = open_dataset("qvhighlights", root, "val")
    assert (opened.settings["encoder"], opened.clip_s, "clip_s" in opened.settings) == (RECIPE, 1.0, False)
    assert list(opened.streams) == ["clip"]
    assert check("qvhighlights", root) == [] and read_recipe(root) == RECIPE
    assert open_dataset("qvhighlights", root, "val", clip_s=1.1).clip_s == 1.1  # an option goes before it


def test_without_a_record_nothing_changes(tmp_path):
    opened = open_dataset("qvhighlights", moment_detr(tmp_path), "val")
    assert (opened.clip_s, "encoder" in opened.settings, read_recipe(tmp_path)) == (2.0, False, None)
    assert list(opened.streams) == ["slowfast", "clip"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"encoder": "fake", "clip_s": "2"}', '{"encoder": 1, "clip_s": 2}']
)
def test_a_damaged_record_is_named(content, tmp_path):
    root = moment_detr(tmp_path)
    (root / RECORD).write_text(content)
    with pytest.raises(ValueError, match=r"encoder\.json: (json|encoder): "):
        open_dataset("qvhighlights", root, "val")


def test_what_differs_between_recipes_is_named_the_encoder_first():
    assert differing(RECIPE, dict(RECIPE)) == []
    assert differing({"width": 3, **RECIPE}, {"width": 4, "encoder": "other", "clip_s": 1.0}) == ["encoder"]
    assert differing(RECIPE | {"a": 1}, {"encoder": "other", "clip_s": 1.0, "b": 2}) == ["encoder", "width", "a", "b"]
