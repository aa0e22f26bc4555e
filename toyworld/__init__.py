"""A world without GPU, network or key, in which the unmodified method files really run."""
import shutil
from pathlib import Path

READY = Path(__file__).parent / "ready"  # checkpoints that come with the code


def copied(path: Path) -> bool:
    """Whether the checkpoint `path` of a world comes with the code; then it is copied there."""
    ready = READY / path.parent.name / path.name
    if ready.is_dir():
        shutil.copytree(ready, path)
    return ready.is_dir()
