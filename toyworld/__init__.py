"""A world without GPU, network or key, in which the unmodified method files really run."""
import shutil
from pathlib import Path

READY = Path(__file__).parent / "ready"  # checkpoints that come with the code


def copied(path: Path) -> bool:
    """Whether the checkpoint `path` of a world comes with the code; then it is copied there, in float32 as one that is made."""
    ready = READY / path.parent.name / path.name
    if ready.is_dir():
        import torch
        from transformers import AutoModelForCausalLM
        shutil.copytree(ready, path)
        AutoModelForCausalLM.from_pretrained(ready, dtype=torch.float32).save_pretrained(path)
    return ready.is_dir()
