"""Imports flow one way: every import statement of the package against the list of arrows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import cdcodec

PACKAGE = Path(cdcodec.__file__).parent
EVERYWHERE = {"config", "errors", "symbols"}
ARROWS = {
    "__init__": {"bits.container", "codec", "image", "weights"},
    "__main__": {"cli"},
    "cli": {"__init__", "batch", "device", "examine", "files", "image", "lab", "options", "target", "weights",
            "weights_commands"},
    "weights_commands": {"lab", "options", "weights"},
    "options": {"files"},
    "batch": {"bits.container", "codec", "console", "files", "image", "target", "threads"},
    "console": {"files"},
    "examine": {"bits.container", "codec", "files", "image"},
    "files": set(),
    "threads": set(),
    "target": {"bits.container", "codec", "weights"},
    "pillow": {"__init__", "bits.container", "image", "metadata"},
    "ray": {"batch", "files", "image", "weights"},
    "codec": {"bits", "image", "weights"},
    "image": {"metadata", "modes"},
    "metadata": set(),
    "modes": set(),
    "weights": {"bits", "device", "nets"},
    "device": set(),
    "lab": {"__init__", "batch", "bits.tables", "codec", "device", "files", "image", "lab", "nets", "options",
            "target", "weights"},
    "nets": {"nets"},
    "bits": {"bits"},
    "config": set(),
    "errors": set(),
    "symbols": set(),
}
"""Which part of the package may import which other part, beside EVERYWHERE. "bits" allows all of "bits.*"."""

OUTSIDE = {
    "__init__": {"PIL"},
    "cli": {"click", "torch"},
    "options": {"click"},
    "weights_commands": {"click"},
    "target": {"numpy"},
    "examine": {"numpy"},
    "pillow": {"PIL"},
    "ray": {"ray"},
    "codec": {"numpy"},
    "image": {"numpy", "PIL"},
    "metadata": {"PIL"},
    "modes": {"numpy", "PIL"},
    "weights": {"numpy", "safetensors", "torch"},
    "device": {"torch"},
    "nets": {"numpy", "torch", "triton"},
    "bits": {"constriction", "numpy"},
    "symbols": {"numpy"},
}
"""Which other packages a part may import; lab may import all but compressai, which is for lab.rate alone."""


def modules() -> dict[str, Path]:
    """Module names without "cdcodec." -> files."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports anywhere, except for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("cdcodec.")
                found.add(f"cdcodec.{inner}" if node.module.startswith("cdcodec") and inner in MODULES else node.module)
    return found


def part(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", list(MODULES))
def test_arrows(module):
    allowed = ARROWS[part(module)] | EVERYWHERE
    for name in imports(MODULES[module]):
        if name.split(".")[0] == "cdcodec":
            imported = name.removeprefix("cdcodec").lstrip(".") or "__init__"
            assert imported in allowed or part(imported) in allowed, f"{module} must not import {name}"


@pytest.mark.parametrize("module", list(MODULES))
def test_packages(module):
    outside = {name.split(".")[0] for name in imports(MODULES[module])} - set(sys.stdlib_module_names) - {"cdcodec"}
    if part(module) == "lab":
        assert "compressai" not in outside or module == "lab.rate"
    else:
        assert outside <= OUTSIDE.get(part(module), set())


def test_the_walk_sees_what_is_there():
    assert {"cdcodec.codec", "cdcodec.files", "cdcodec.image"} <= imports(MODULES["batch"])
    assert "cdcodec.weights" in imports(MODULES["cli"])
    assert "compressai" in {name.split(".")[0] for name in imports(MODULES["lab.rate"])}


def test_sizes():
    for name, path in MODULES.items():
        assert len(path.read_text().splitlines()) <= 400, f"{name} has grown too long"


def loaded_by(code: str) -> set[str]:
    """The top-level packages in sys.modules after running Python code in a fresh process."""
    script = f"import sys\n{code}\nprint('LOADED', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    fresh = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return set(fresh.stdout.split("LOADED ")[1].split())


def command(*arguments: str) -> str:
    return (
        "from cdcodec.cli import main\n"
        "try:\n"
        f"    main({list(arguments)!r})\n"
        "except SystemExit as leaving:\n"
        "    assert leaving.code == 0, leaving.code\n"
    )


HEAVY = {"torch", "compressai", "lpips", "torchvision", "matplotlib", "scipy"}


def test_importing_the_package_is_cheap():
    loaded = loaded_by("import cdcodec")
    assert "cdcodec" in loaded
    assert not loaded & (HEAVY | {"numpy", "PIL", "click"})


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), ("encode", "--help"), ("train", "--help")])
def test_help_is_cheap(arguments):
    assert not loaded_by(command(*arguments)) & (HEAVY | {"numpy", "PIL"})


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_info_is_cheap(tmp_path, flags):
    from cdcodec.bits import container

    header = container.Header(checkpoint=1, lam=0.0128, width=3, height=5, symbol_check=7)
    (tmp_path / "x.cdc").write_bytes(container.pack(header, {}, b"payload"))
    assert not loaded_by(command("info", str(tmp_path / "x.cdc"), *flags)) & (HEAVY | {"numpy", "PIL"})


def test_weights_list_is_cheap(tiny_weights):
    assert "torch" not in loaded_by(command("weights", "list", "--weights", str(tiny_weights)))


def test_coding_needs_no_extra(tiny_weights, tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "in.png")
    coded = str(tmp_path / "x.cdc")
    encode = command("encode", str(tmp_path / "in.png"), coded, "--weights", str(tiny_weights))
    decode = command("decode", coded, str(tmp_path / "out.png"), "--steps", "1", "--weights", str(tiny_weights))
    loaded = loaded_by(encode + decode)
    assert {"torch", "constriction", "safetensors", "PIL"} <= loaded
    assert not loaded & (HEAVY - {"torch"})


def test_the_version_is_stated_twice_and_equal():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == cdcodec.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", cdcodec.__version__)
