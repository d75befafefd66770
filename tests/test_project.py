"""The project itself: style, types, and the picture of its rooms."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nvg"


def tool(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check():
    tool("ruff", "check", ".")


def test_ruff_format():
    tool("ruff", "format", "--check", ".")


def test_mypy():
    tool("mypy")


def rooms():
    """The rooms of nvg/README.md's picture, highest first: room -> its level."""
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    picture = re.search(r"```rooms\n(.*?)```", text, re.S)[1]
    levels = {}
    for level, line in enumerate(picture.strip().splitlines()):
        for room in line.split("   ")[0].split(" . "):
            levels[room.strip().removesuffix("/").removesuffix(".py")] = level
    return levels


def room_of(module):
    """The room of a module "nvg.kernels.simd": "kernels"; None for nvg itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "nvg" else None


def imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" if node.module == "nvg" else node.module for alias in node.names)


MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if "recipe" not in path.parts and path != PACKAGE / "__init__.py"
)


def test_every_room_is_in_the_picture():
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__main__", "data"}
    assert found == set(rooms())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_below(path):
    levels = rooms()
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__main__":
        return
    for module in imports(path):
        room = room_of(module)
        if room is not None and room != own:
            assert levels[room] > levels[own], f"{own} imports {module}, which is not below it"


def test_click_stays_in_the_command_line_and_njit_in_the_runtime():
    for path in MODULES:
        room = path.relative_to(PACKAGE).parts[0]
        names = set(imports(path))
        assert room == "cli" or "click" not in names, path
        uses_njit = any(
            isinstance(node, ast.Attribute) and node.attr in ("njit", "jit")
            for node in ast.walk(ast.parse(path.read_text()))
        )
        assert path.name == "compile_cache.py" or not uses_njit, path


def test_the_wheel_and_the_package_carry_the_model():
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert (PACKAGE / "data" / "tales" / name).is_file()
    assert (PACKAGE / "py.typed").is_file()


def test_no_file_names_a_machine_path():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout")
    files = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if name.endswith((".py", ".md", ".toml", ".txt", ".json")) and (ROOT / name).exists():
            text = (ROOT / name).read_text(encoding="utf-8")
            found = re.search(r"/(root|home/\w+|farm)/", text)
            assert found is None, f"{name} has {found}"
