"""Write every overlay into a directory: `python -m tests.deploy DIR`, for linters."""

import sys
from pathlib import Path

from tests.deploy.rendering import OVERLAYS, text_of

(directory,) = map(Path, sys.argv[1:])
directory.mkdir(parents=True, exist_ok=True)
for overlay in OVERLAYS:
    (directory / f"{overlay}.yaml").write_text(text_of(overlay))
