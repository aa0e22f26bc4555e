"""The toy student: a tiny Llama trained from scratch, saturated with gaps: good at most skills, poor at a few that pretraining hardly showed."""
import random
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from toyworld import copied
from toyworld import problems as toy

WEAK = ("perimeters", "areas", "sums of three", "digit products", "digit differences", "function values", "linear equations", "falling sequences",
        "doubling", "brackets", "missing addends", "distances")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|answer|>{{ m.content }}<|end|>{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)
VOCAB, LAYERS, WIDTH, HEADS, FF, BATCH = 512, 2, 128, 4, 384, 16


def draw_problem(rng: random.Random, weak_weight: float, p_two: float) -> toy.Problem:
    """One problem of the mixture: a weak skill comes `weak_weight` times as often as a strong one."""
    def pick(names):
        return rng.choices(names, [weak_weight if name in WEAK else 1.0 for name in names])[0]
    if rng.random() < p_two:
        return toy.make(rng, pick(toy.FIRST), rng.randint(1, 2), pick(toy.SECOND))
    return toy.make(rng, pick(list(toy.BY_NAME)), rng.randint(1, 3))


def solution(problem: toy.Problem, style: int) -> str:
    steps, answer = toy.solve(problem)
    return toy.write_solution([step for step, _ in steps], answer, style)


def make_tokenizer(texts: list[str], pieces: str) -> PreTrainedTokenizerFast:
    """Byte-level pieces that may span words, `pieces` alone: whole phrases become one token, any text can be read, sequences stay short."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pieces), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|end|>", "<|user|>", "<|answer|>"]
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left",
                                   chat_template=CHAT_TEMPLATE, model_max_length=2048)


def encode(tokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokens of a question and its answer in chat form, and their labels: -100 in the question."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids
    n = ids.index(tokenizer.convert_tokens_to_ids("<|answer|>")) + 1
    return ids, [-100] * n + ids[n:]


def make_model(tokenizer, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=FF, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, tie_word_embeddings=True, max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None))


@torch.no_grad()
def muon_step(matrices: list[torch.Tensor], momenta: list[torch.Tensor], lr: float) -> None:
    """Muon (Jordan et al. 2024): SGD with Nesterov momentum 0.95 whose update of each matrix is made nearly orthogonal.

    ours: not torch.optim.Muon, because that computes in bfloat16, which a CPU without AVX-512 emulates 20 times slower.
    """
    for p, momentum in zip(matrices, momenta, strict=True):
        momentum.lerp_(p.grad, 0.05)
        p.mul_(1 - lr * 0.01)  # weight decay
        p.sub_(orthogonal(p.grad.lerp(momentum, 0.95)), alpha=0.2 * lr * max(p.shape) ** 0.5)  # as large as AdamW's update
        p.grad = None


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of the singular value decomposition, roughly: five Newton-Schulz steps bring the singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's coefficients: steepest at 0, so values of 0.7 to 1.2 come out
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)  # (m, n), m <= n, no singular value above 1
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def pretrain(path: Path, model: LlamaForCausalLM, tokenizer, parts: list[list[tuple[list[int], list[int]]]], rng: random.Random,
             batch: int, peak: float) -> None:
    """Trains all weights on pairs (tokens, labels), each once, part after part, and saves checkpoint and tokenizer to `path`. peak: of the rate."""
    started, batches = time.time(), []
    for part in parts:
        rng.shuffle(part)
        chunks = [sorted(part[i:i + 20 * batch], key=lambda pair: len(pair[0])) for i in range(0, len(part), 20 * batch)]
        mixed = [chunk[i:i + batch] for chunk in chunks for i in range(0, len(chunk), batch)]
        rng.shuffle(mixed)
        batches += mixed
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    # In a trial Muon needed far fewer steps than AdamW on these tasks; the embedding and the norms stay with AdamW.
    momenta, adam = [torch.zeros_like(p) for p in matrices], torch.optim.AdamW(others, weight_decay=0.01, betas=(0.9, 0.95))
    bar = tqdm(batches, desc=f"pretrain the toy {path.name}", unit="step")
    for step, pairs in enumerate(bar):
        width = max(len(ids) for ids, _ in pairs)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in pairs])  # (B, T)
        labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in pairs])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in pairs])
        lr = peak * min(1, (step + 1) / 50) * (1 - step / len(batches))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon_step(matrices, momenta, lr)
        adam.param_groups[0]["lr"] = lr
        adam.step()
        adam.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    aside = path.with_name(path.name + ".tmp")
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    aside.rename(path)
    print(f"toy {path.name}: {sum(p.numel() for p in model.parameters())} parameters, {len(batches)} steps, {time.time() - started:.0f} s")


def make_student(path: Path, seed: int, rng: random.Random, problems: list, solve, prompt: str, pieces: str = r"\d|[-+*/=|]",
                 drills: list[tuple[str, str]] = (), beside: list[tuple[str, str]] = ()) -> None:
    """Pretrains the student on problems with the solutions solve(problem, style), style 0 to 3, and saves it to `path`.

    prompt: the text that wraps a problem, with {problem}. pieces: what is a token of its own. drills: questions with answers, trained on first;
    beside: trained on among the problems.
    """
    if copied(path):
        return
    questions = {problem.text: prompt.format(problem=problem.text) for problem in problems}
    texts = [questions[p.text] + "<|answer|>" + solve(p, rng.randrange(4)) for p in rng.sample(problems, min(4000, len(problems)))]
    tokenizer = make_tokenizer(texts + ["<|answer|>".join(pair) for pair in beside[:2000]], pieces)
    parts = [[encode(tokenizer, *drill) for drill in drills],
             [encode(tokenizer, questions[p.text], solve(p, rng.randrange(4))) for p in problems] + [encode(tokenizer, *pair) for pair in beside]]
    pretrain(path, make_model(tokenizer, seed), tokenizer, parts, rng, BATCH, peak=3e-3)
