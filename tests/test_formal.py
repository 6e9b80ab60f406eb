"""The models in formal/ speak of SQL that exists. That they hold is `make formal`'s to say."""

from __future__ import annotations

import re
from pathlib import Path

from test_sql_files import BLOCKS, TABLES

FORMAL = Path(__file__).parents[1] / "formal"
NAME = re.compile(rf"\b((?:{'|'.join(TABLES)})\.[a-z_]+)\b")


def test_each_step_of_the_models_names_an_sql_block_and_the_readme_maps_all_of_them():
    mapping = (FORMAL / "README.md").read_text().partition("## Which step")[2].partition("\n## ")[0]
    mapped = set(NAME.findall(mapping))
    named = {name for model in FORMAL.glob("*.pml") for name in NAME.findall(model.read_text())}
    assert mapped - set(BLOCKS) == set()
    assert named == mapped


def test_each_guard_that_a_model_can_leave_out_is_left_out_by_the_check_and_told_in_the_readme():
    check, readme = (FORMAL / "check").read_text(), (FORMAL / "README.md").read_text()
    for model in FORMAL.glob("*.pml"):
        text = model.read_text()
        bounds = set(re.findall(r"#define ([A-Z_]+)", text))
        guards = set(re.findall(r"#ifn?def ([A-Z_]+)", text)) - bounds
        assert guards
        assert [guard for guard in guards if f"-D{guard}" not in check or f"`{guard}`" not in readme] == []
