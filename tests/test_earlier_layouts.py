"""Parameters that an earlier revision laid out otherwise are refused in one line that says what to do."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from tests.tiny import make_artifact
from train.checkpoint import LAYOUT, check_identity, load_params, write_tree
from train.export import read_drafter, write_orbax


def checkpoint(path: Path, identity: dict) -> Path:
    (path / "3" / "metadata").mkdir(parents=True)
    (path / "3" / "metadata" / "metadata").write_text(json.dumps({"step": 3, "identity": identity}))
    write_tree({"drafter": {"fc": np.ones((2, 2))}}, path / "3" / "params")
    return path


def test_a_checkpoint(tmp_path: Path):
    old, new = checkpoint(tmp_path / "old", {"width": 4}), checkpoint(tmp_path / "new", {"width": 4, "layout": LAYOUT})
    with pytest.raises(UserError, match=r"old/3: its parameters have layout 1; expected 3: .* by the revision"):
        load_params(old, "last")  # as an export does
    with pytest.raises(UserError, match=r"old/3: its parameters have layout 1; expected 3"):
        check_identity(old / "3", {"width": 4, "layout": LAYOUT})  # as --resume does
    assert load_params(new, "last")[2] == 3
    check_identity(new / "3", {"width": 4, "layout": LAYOUT})


def test_an_orbax_export(tmp_path: Path):
    artifact = make_artifact()
    write_orbax(artifact, tmp_path)
    read_drafter(tmp_path)
    for layer in artifact.weights["layers"]:
        layer["gate_up"] = np.stack([layer.pop("gate"), layer.pop("up")], axis=1)
    write_orbax(artifact, tmp_path)
    with pytest.raises(UserError, match=r"exported in an earlier layout .*; export it again"):
        read_drafter(tmp_path)
