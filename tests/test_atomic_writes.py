"""Whatever is written appears whole: files are written in configs/files.py or within `with replacing(...)` only.

Lines added at a file's end are the exception: the training curves, which end at a kill where they are.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("configs", "models", "pipelines", "train", "serve")
WRITERS = ("write_text", "write_bytes", "save_file", "ArrayRecordWriter", "savez", "rename")


def _writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name == "open" or name.endswith(".open"):
        words = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        return any(set(mode) <= set("rwxab+t") and set(mode) & set("wx") for mode in modes)
    return name.split(".")[-1] in WRITERS or name in ("os.replace", "json.dump", "np.save")


def hand_written(source: str) -> list[int]:
    """The lines that write a file outside `with replacing(...)`."""
    tree = ast.parse(source)
    kept = {
        id(call)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and any("replacing(" in ast.unparse(item) for item in block.items)
        for call in ast.walk(block)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in kept]
    return [call.lineno for call in calls if _writes(call)]


def test_no_file_is_written_by_hand():
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    found = {str(file.relative_to(ROOT)): hand_written(file.read_text()) for file in files}
    assert {name for name, lines in found.items() if lines} == {"configs/files.py"}


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("path.write_text('x')", [1]),
        ("open(path, 'w').write('x')", [1]),
        ("path.open(mode='wb')", [1]),
        ("with open(path, 'x') as file:\n    pass", [1]),
        ("os.replace(a, b)", [1]),
        ("with replacing(path) as partial:\n    partial.write_text('x')", []),
        ("open(path, 'a')", []),
        ("open(path)", []),
    ],
)
def test_a_planted_write_is_found(line: str, lines: list[int]):
    assert hand_written(line) == lines
