"""Writes docs/api.md from the docstrings of the public modules, without importing them.

    python docs/make.py             write it
    python docs/make.py --check     exit with 1 if it is not what would be written
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
MODULES = ("__init__", "errors", "weights", "codec", "target", "pillow", "ray", "image", "symbols", "bits.container",
           "bits.coder")  # fmt: skip
INTRODUCTION = """# Python API

What `import cdcodec` offers, and the modules under it that programs may build on. Made by `docs/make.py` from the
docstrings; do not edit. The command line is told by `cdcodec --help`, the format by [SPEC.md](../SPEC.md), what becomes
of each kind of picture by [pictures.md](pictures.md).
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *(line for module in MODULES for line in section(module))]).rstrip() + "\n"


def section(module: str) -> Iterator[str]:
    """The lines of one module: what it says of itself, then its public names in the order of the file."""
    tree = ast.parse((ROOT / "cdcodec" / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
    name = "cdcodec" if module == "__init__" else f"cdcodec.{module}"
    yield f"## {name}\n"
    yield from said(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and public(node.name):
            yield f"### {name}.{node.name}\n"
            yield signature(node)
            yield from said(node)
        elif isinstance(node, ast.ClassDef) and public(node.name):
            yield f"### {name}.{node.name}\n"
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            yield f"```python\nclass {node.name}{f'({bases})' if bases else ''}\n{fields(node)}```\n"
            yield from said(node)
            yield from methods(node)


def methods(node: ast.ClassDef) -> Iterator[str]:
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and public(inner.name) and ast.get_docstring(inner):
            yield f"#### {node.name}.{inner.name}\n"
            yield signature(inner)
            yield from said(inner)


def fields(node: ast.ClassDef) -> str:
    """Of a dataclass, each on a line."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return ""
    inner = [item for item in node.body if isinstance(item, ast.AnnAssign) and public(ast.unparse(item.target))]
    return "".join(f"    {ast.unparse(item)}\n" for item in inner if "init=False" not in ast.unparse(item))


def signature(node: ast.FunctionDef) -> str:
    arguments = ast.unparse(node.args)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({arguments}){result}"
    if len(line) > 100:
        parts = split(arguments)
        line = f"{node.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"
    return f"```python\n{line}\n```\n"


def split(arguments: str) -> list[str]:
    """Arguments at the commas that are not within brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def said(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    """The docstring."""
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
    if text:
        yield text + "\n"


def public(name: str) -> bool:
    return not name.startswith("_")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page() else 1)
    PAGE.write_text(page(), encoding="utf-8")
