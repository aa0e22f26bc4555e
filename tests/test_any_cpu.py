"""What holds on every CPU: all is computed in float32, since a CPU without AVX-512 emulates the half precisions, 20 times slower."""
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import common
import stat_sel
from benchmarks import record
from tests.test_run_end_to_end import flags
from toyworld import student as toy_student
from toyworld import world

HALF = (torch.bfloat16, torch.float16)


class NoHalf(TorchDispatchMode):
    """Raises where an operation returns a tensor in half precision."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.dtype in HALF for x in tree_leaves(out)):
            raise AssertionError(f"{function} computed in half precision")
        return out


def test_the_guard_sees_half_precision():
    with NoHalf():
        torch.ones(2, 2) @ torch.ones(2, 2)
        for dtype in HALF:
            with pytest.raises(AssertionError, match="half precision"):
                torch.ones(2, 2).to(dtype)


def test_a_world_is_made_in_float32(tmp_path):
    from toyworld.prm import make_reward
    with NoHalf():
        made = world.make_world(tmp_path, 0, stat_sel.STUDENT_PROMPT, 0.01)  # student and reward model: 24 steps, and a few more
        make_reward(made / "reward", made / "student", 0, 0.01)


def test_the_world_that_comes_with_the_code_is_in_float32(tmp_path):
    """Its checkpoints are kept in half the size; a reward model that is made from them computes in float32 all the same."""
    from toyworld.prm import make_reward
    made = world.make_world(tmp_path, 0, stat_sel.STUDENT_PROMPT)
    with NoHalf():
        make_reward(made / "reward", made / "student", 0, 0.01)


def test_a_method_runs_in_float32(small_world, tmp_path, teacher_url, call_file):
    """Answers, step rewards, embeddings, training, test."""
    with NoHalf():
        done = call_file("stat_sel.py", *flags(small_world, teacher_url, tmp_path / "out", "--limit", "20", "--arms", "base", "embed"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["arms"].keys() == {"base", "embed"}


def test_a_checkpoint_in_half_precision_is_loaded_in_float32(small_world, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    AutoModelForCausalLM.from_pretrained(small_world / "student").bfloat16().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(small_world / "student").save_pretrained(tmp_path)
    model = common.load_student(str(tmp_path)).model
    assert not {p.dtype for p in model.parameters()} & set(HALF)
    with NoHalf(), torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))


def test_an_embedder_in_half_precision_computes_in_float32(small_world, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    body = Transformer(str(small_world / "student"))
    made = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())], device="cpu")
    made.bfloat16().save(str(tmp_path / "embedder"))
    assert {p.dtype for p in SentenceTransformer(str(tmp_path / "embedder"), device="cpu").parameters()} == {torch.bfloat16}  # as it is loaded
    args = stat_sel.Args(embedder=str(tmp_path / "embedder"), out=str(tmp_path / "out"))
    stat_sel.check_embedder(args)
    rows = common.load(str(small_world), "train")[:20]
    run = common.open_run(args, args.out)
    halves = []

    class Counted(NoHalf):  # the weights are loaded as they are; what is computed from them counts
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if "mm" in str(function) or "linear" in str(function):
                halves.extend(x.dtype for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            return out
    with Counted():
        found = stat_sel.retrieve(args, run, rows[:3], rows, 2)
    assert halves and not set(halves) & set(HALF) and [near[0] for near in found.values()] == list(found)  # each is nearest to itself


def test_merged_weights_are_unpacked_to_float32(small_world):
    with NoHalf():
        model = common.load_student(str(small_world / "student"), merged=True).model
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_benchmarks_make_their_checkpoint_in_float32(small_world, tmp_path, monkeypatch):
    (tmp_path / "SmolLM2-135M-Instruct").symlink_to(small_world / "student")
    monkeypatch.setenv("REALWORLD_DIR", str(tmp_path))
    monkeypatch.setattr(record, "CACHE", tmp_path)
    with NoHalf():
        record.checkpoint("tiny")


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_an_update_is_nearly_orthogonal(shape):
    """Beside the exact U V^T: the same directions, every length between 0.6 and 1.3."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ toy_student.orthogonal(matrix) @ v.T  # (n, n), diagonal if the directions are the same
    assert torch.allclose(inside, inside.diagonal().diag(), atol=1e-4)
    assert 0.6 < inside.diagonal().min() and inside.diagonal().max() < 1.3


def test_muon_is_torchs_but_for_its_rounding():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(12, 20, bias=False), torch.nn.Linear(12, 20, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.Muon(theirs.parameters(), lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    weights, momenta = list(ours.parameters()), [torch.zeros(20, 12)]
    start = weights[0].detach().clone()
    for _ in range(3):
        gradient = torch.randn(20, 12)
        weights[0].grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        toy_student.muon_step(weights, momenta, lr=1e-2)
        optimizer.step()
    moved = (weights[0] - start).norm()
    assert (weights[0] - theirs.weight).norm() < 0.02 * moved
