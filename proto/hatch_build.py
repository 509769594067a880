"""Generates the Python stubs of every .proto below paceline/ when the package is built.

The proto package, its folder and the Python package have one name, so no import is patched afterwards.
"""

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateStubs(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        from grpc_tools import protoc

        root = Path(self.root)
        out = root / "gen"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        sources = sorted(str(path) for path in (root / "paceline").rglob("*.proto"))
        well_known = resources.files("grpc_tools") / "_proto"
        outputs = [f"--{plugin}={out}" for plugin in ("python_out", "pyi_out", "grpc_python_out")]
        if protoc.main(["protoc", f"-I{root}", f"-I{well_known}", *outputs, *sources]):
            raise RuntimeError("protoc failed: its messages are above")
        package = out / "paceline"
        for folder in (package, *(path for path in package.rglob("*") if path.is_dir())):
            (folder / "__init__.py").touch()
        (package / "py.typed").touch()
