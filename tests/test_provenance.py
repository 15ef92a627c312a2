"""A result names the commit of this project's own checkout, and of no other that happens to lie around it."""

import shutil
import subprocess
import sys
from pathlib import Path

import configs


def install(root: Path) -> Path:
    """This package copied under `root`, as an installer would."""
    shutil.copytree(Path(configs.__file__).parent, root / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def commit(root: Path) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(root), *who, "commit", "-q", "-m", "one"], check=True)
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return found.stdout.strip()[:12]


def revision(root: Path) -> str:
    code = "from configs.provenance import git_revision; print(git_revision())"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_checkout_names_its_commit(tmp_path: Path):
    own = commit(install(tmp_path / "project"))
    assert revision(tmp_path / "project") == own
    (tmp_path / "project" / "configs" / "smoke.yaml").write_text("changed")
    assert revision(tmp_path / "project") == f"{own}-dirty"


def test_inside_another_checkout_or_none_it_is_unknown(tmp_path: Path):
    inner = install(tmp_path / "other" / "lib" / "site-packages")
    assert revision(inner) == "unknown"
    commit(tmp_path / "other")
    assert revision(inner) == "unknown"
