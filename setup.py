"""Compiles the CPU kernels into the package; everything else is in pyproject.toml."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU_BUILD = Path(__file__).parent / "kernels" / "dq_kernels" / "cpu" / "build.py"


def _builder():
    spec = importlib.util.spec_from_file_location("dq_kernels_cpu_build", CPU_BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """Builds _cpu.so; without a compiler the package installs with the library engines alone."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library is loaded by ctypes: its name holds no Python version."""
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile with the project's own flags."""
        builder = _builder()
        try:
            builder.build(Path(self.get_ext_fullpath(ext.name)))
        except builder.BuildError as error:
            print(f"warning: the CPU kernels are not built: {error}", file=sys.stderr)


setup(
    ext_modules=[Extension("dq_kernels._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
