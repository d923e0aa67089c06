"""The code is formatted, linted and typed, and importing it stays light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "mypy", "fiji_bridge"),
    ],
    ids=["lint", "format", "types"],
)
def test_tool_has_nothing_to_say(command):
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("code", ["import fiji_bridge", "from fiji_bridge.cli import main; main(['--help'])"])
def test_neither_torch_nor_a_jvm_is_started_by(code):
    heavy = ["torch", "jpype", "scyjava", "matplotlib", "pandas", "xarray", "dask", "zarr"]
    program = f"""
import sys
try:
    {code}
except SystemExit:
    pass
loaded = [name for name in {heavy} if name in sys.modules]
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    done = run("-c", program)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    import fiji_bridge

    for name in fiji_bridge.__all__:
        assert callable(getattr(fiji_bridge, name)), name
