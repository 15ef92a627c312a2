"""Packages import along the arrow only, and a command's --help loads nothing heavy.

The arrow: configs <- models <- pipelines <- train, and configs, models <- serve, which reads prompt files too.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "configs": {"configs"},
    "models": {"configs", "models"},
    "pipelines": {"configs", "models", "pipelines"},
    "train": {"configs", "models", "pipelines", "train"},
    "serve": {"configs", "models", "serve"},
}
SHARED = "pipelines.prompt_files"  # the one module of pipelines that serve reads
HEAVY = ("jax", "flax", "tunix", "torch", "transformers", "tensorflow_datasets", "grain", "numba", "pandas")
HELP_SECONDS = 1.0
ONLY_IN = {  # large or rarely needed packages, and the one module that uses each
    "datasets": "pipelines/prompts.py",
    "tensorflow_datasets": "pipelines/prompts.py",
    "tensorboardX": "train/metrics.py",
    "scipy": "models/statistics.py",
    "tunix": "train/trainer.py",
}


def imported_names(source: str) -> list[tuple[int, str]]:
    """Every (line, module) that the source imports, wherever in it; a relative import is the module "."."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "." if node.level else str(node.module)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
        ):
            found += [(node.lineno, str(arg.value)) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return found


def wrong_arrows(root: Path) -> list[str]:
    """One line for each import under `root` that points against the arrow; relative ones count as wrong."""
    wrong = []
    for package, allowed in MAY_IMPORT.items():
        for file in sorted((root / package).rglob("*.py")):
            for line, module in imported_names(file.read_text()):
                top = module.split(".")[0]
                if package == "serve" and module == SHARED:
                    continue
                if top == "" or (top in {*MAY_IMPORT, "tests"} and top not in allowed):
                    wrong.append(f"{file.relative_to(root)}:{line} imports {module}")
    return wrong


def importers(root: Path, package: str) -> list[str]:
    """The files under `root`'s packages that import `package`, wherever in them."""
    files = [file for name in MAY_IMPORT for file in sorted((root / name).rglob("*.py"))]
    return [
        str(file.relative_to(root))
        for file in files
        if package in {module.split(".")[0] for _, module in imported_names(file.read_text())}
    ]


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_large_package_is_one_modules(package: str):
    assert importers(ROOT, package) == [ONLY_IN[package]]


def test_serving_loads_no_package_of_training():
    rooms = ("evaluate", "inspect", "chat", "load", "session", "summary", "rendering", "report", "server")
    unwanted = (*ONLY_IN, "scipy.stats", "grain", "orbax", "pandas")
    program = (
        f"import sys, {', '.join(f'serve.{room}' for room in rooms)}\n"
        f"print([name for name in {unwanted!r} if name in sys.modules and name != 'scipy'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_all_five_packages_are_there():
    assert [package for package in MAY_IMPORT if not (ROOT / package / "__init__.py").is_file()] == []


def test_no_import_points_against_the_arrow():
    assert wrong_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/decode.py", "from train.objectives.dflash import weights"),
        ("train/trainer.py", "import serve.session"),
        ("models/target.py", "def load():\n    import pipelines.prompts"),
        ("configs/schema.py", "from models import shapes"),
        ("serve/evaluate.py", "from pipelines.prompts import load_prompts"),
        ("pipelines/batches.py", "import importlib\nimportlib.import_module('train.objectives.dflash')"),
        ("train/objectives/dflash.py", "from . import acceptance"),
    ],
)
def test_a_planted_wrong_import_is_found(tmp_path: Path, file: str, line: str):
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text("import json\nfrom configs import schema\n" + line + "\n")
    assert [found.split(":")[0] for found in wrong_arrows(tmp_path)] == [file]


@pytest.mark.parametrize(
    "arguments",
    [
        "pipelines --help",
        "pipelines prepare --help",
        "pipelines show --help",
        "train --help",
        "train export --help",
        "train study --help",
        "serve --help",
        "serve eval --help",
        "serve chat --help",
        "serve http --help",
        "serve cost --help",
    ],
)
def test_help_answers_at_once(arguments: str):
    """Processor time is what is bounded: it does not depend on what else the machine is doing."""
    module, *rest = arguments.split()
    program = (
        "import runpy, sys, time\n"
        f"sys.argv = {[module, *rest]!r}\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    print('code', end.code or 0)\n"
        f"print('heavy', [name for name in {HEAVY!r} if name in sys.modules])\n"
        "print('seconds', time.process_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    text, outcome = done.stdout.rsplit("code ", 1)
    code, heavy, seconds = outcome.splitlines()
    assert "usage" in text.lower()
    assert (code, heavy) == ("0", "heavy []")
    assert float(seconds.split()[1]) < HELP_SECONDS
