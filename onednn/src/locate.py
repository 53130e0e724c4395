"""Prints what the build needs: two include directories and libdnnl.so, as a CMake list."""

from importlib.metadata import files
from pathlib import Path


def locate(package: str, name: str) -> Path:
    """The file of a package whose path ends so."""
    for file in files(package) or ():
        if file.as_posix().endswith(name):
            return Path(str(file.locate())).resolve()
    raise SystemExit(f"{package} has no {name}")


XLA, DNNL = "xla/ffi/api/ffi.h", "oneapi/dnnl/dnnl.hpp"
headers = [
    str(locate(package, name)).removesuffix(f"/{name}")
    for package, name in (("jaxlib", XLA), ("onednn-devel-cpu-gomp", DNNL))
]
print(";".join([*headers, str(locate("onednn-cpu-gomp", "libdnnl.so.3"))]))
