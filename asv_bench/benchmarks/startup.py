"""How long until a new process has imported normkit, and until it has its first result?"""

from __future__ import annotations

FIRST_CALL = "import numpy, normkit; normkit.layer_norm(numpy.ones((512, 768), numpy.float32))"
NO_CACHE = """
import os, tempfile
folder = tempfile.TemporaryDirectory()
for name in ("NORMKIT_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
    os.environ[name] = folder.name
os.environ.pop("NORMKIT_BACKGROUND", None)
"""


class StartUp:
    """Each sample is a process of its own."""

    version = "1"
    number = 1
    repeat = (3, 10, 20.0)
    rounds = 2
    timeout = 300

    def timeraw_import_numpy(self) -> str:
        return "import numpy"

    def timeraw_import_normkit(self) -> str:
        return "import normkit"

    def timeraw_first_call_cold(self) -> tuple[str, str]:
        return FIRST_CALL, NO_CACHE

    def timeraw_first_call_warm(self) -> str:
        return FIRST_CALL
