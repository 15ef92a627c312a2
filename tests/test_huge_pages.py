"""A command starts over in huge pages once, as it was called, and only where the system gives them to who asks."""

import os
import sys
from pathlib import Path

import pytest

from configs import device

Started = list[tuple[str, list[str], str]]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """What the process was started over with; the system gives huge pages to who asks."""
    calls: Started = []
    monkeypatch.setattr(os, "execv", lambda file, argv: calls.append((file, argv, os.environ["GLIBC_TUNABLES"])))
    monkeypatch.setattr(device, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-u", "-m", "serve", "eval", "--target", "a b"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=1")
    device.HUGE_PAGES.write_text("always [madvise] never\n")
    return calls


def test_once_with_what_it_was_given(started: Started):
    device.begin_in_huge_pages()
    device.begin_in_huge_pages()
    argv = [sys.executable, "-u", "-m", "serve", "eval", "--target", "a b"]
    assert started == [(sys.executable, argv, "glibc.malloc.perturb=1:glibc.malloc.hugetlb=1")]


@pytest.mark.parametrize("said", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_not_where_asking_changes_nothing(started: Started, said: str | None):
    device.HUGE_PAGES.unlink() if said is None else device.HUGE_PAGES.write_text(said)
    device.begin_in_huge_pages()
    assert started == []


def test_a_system_that_refuses_is_left_as_it_is(started: Started, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> None:
        raise PermissionError("execv")

    monkeypatch.setattr(os, "execv", refused)
    device.begin_in_huge_pages()
    monkeypatch.setattr(device, "HUGE_PAGES", device.HUGE_PAGES.parent)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    device.begin_in_huge_pages()
    assert started == []


def test_not_against_what_the_user_said(started: Started, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    device.begin_in_huge_pages()
    assert started == []
