"""The API's page is made from the docstrings as they are, every public name has one, and the licence is in full."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cdcodec

ROOT = Path(cdcodec.__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import make  # noqa: E402


def test_the_page_is_current():
    assert make.PAGE.read_text(encoding="utf-8") == make.page(), "run python docs/make.py"


def test_the_script_checks(tmp_path):
    assert subprocess.run([sys.executable, make.__file__, "--check"], check=False, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("module", make.MODULES)
def test_public_names_say_what_they_are(module):
    path = (ROOT / "cdcodec" / Path(*module.split("."))).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or len(node.body) == 1, f"{module}.{node.name}"


def test_names_of_the_package_are_on_the_page():
    text = make.PAGE.read_text(encoding="utf-8")
    for name in ("encode", "decode", "read_header", "load_model"):
        assert f"### cdcodec.{name}\n" in text
    for name in vars(cdcodec.errors):
        if name.endswith("Error"):
            assert f"### cdcodec.errors.{name}\n" in text


def test_the_package_is_typed():
    assert (ROOT / "cdcodec" / "py.typed").exists()


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) > 11_000


def test_the_citation_is_of_this_version():
    assert f"version: {cdcodec.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_limit_of_pixels_can_be_set(photograph, tiny):
    data = cdcodec.encode(photograph, model=tiny)
    assert cdcodec.decode(data, model=tiny, steps=0, max_pixels=photograph.size).mode == "RGB"
    for look in (cdcodec.read_header, lambda *a, **k: cdcodec.decode(*a, model=tiny, **k)):
        with pytest.raises(cdcodec.errors.CdcodecError, match="over the limit of 9 pixels"):
            look(data, max_pixels=9)
