"""Builds the wheel (PEP 517): the package, and the C library that it calls, as cargo has built it.

Nothing but Python's own library is needed. The same files make the same wheel, byte by byte.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sysconfig
import zipfile
from pathlib import Path
from typing import Any, Optional

HERE = Path(__file__).resolve().parent
LIBRARY = "libagent_core.so.0"


def library() -> Path:
    """The built C library: AGENT_CORE_LIBRARY, or where cargo leaves it."""
    named = os.environ.get("AGENT_CORE_LIBRARY")
    path = Path(named) if named else HERE.parents[1] / "target/release/libagent_core_c.so"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: cargo build --release --locked -p agent-core-c, or set AGENT_CORE_LIBRARY")
    return path


def project(key: str) -> str:
    """A line of pyproject.toml; this runs on Pythons that cannot read TOML."""
    found = re.search(rf'^{key} = "(.*)"$', (HERE / "pyproject.toml").read_text(), re.MULTILINE)
    if not found:
        raise SystemExit(f"pyproject.toml: no {key}")
    return found.group(1)


def contents() -> dict[str, bytes]:
    files = {f"agent_core/{path.name}": path.read_bytes() for path in (HERE / "agent_core").iterdir() if path.is_file()}
    files[f"agent_core/{LIBRARY}"] = library().read_bytes()
    info = f"agent_core-{project('version')}.dist-info"
    metadata = {
        "Metadata-Version": "2.1",
        "Name": project("name"),
        "Version": project("version"),
        "Summary": project("description"),
        "Requires-Python": project("requires-python"),
        "License": "Apache-2.0",
    }
    files[f"{info}/METADATA"] = "".join(f"{key}: {value}\n" for key, value in metadata.items()).encode()
    wheel = f"Wheel-Version: 1.0\nGenerator: wheel_of_library\nRoot-Is-Purelib: false\nTag: {tag()}\n"
    files[f"{info}/WHEEL"] = wheel.encode()
    record = ""
    for name, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return files


def tag() -> str:
    """Any Python 3 on the system that the library was built for."""
    return "py3-none-" + re.sub(r"[^A-Za-z0-9]", "_", sysconfig.get_platform())


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Optional[str] = None) -> str:
    name = f"agent_core-{project('version')}-{tag()}.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in sorted(contents().items()):
            entry = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
    return name
