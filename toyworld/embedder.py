"""The toy embedder: a sentence-transformers model of the kind that adds up a vector for each token, drawn at random and not trained."""
from pathlib import Path

DIMENSIONS = 256  # random vectors of so many numbers are nearly orthogonal, so what is near shares its tokens


def make_embedder(path: Path, student: Path, seed: int) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(student)._tokenizer
    vectors = torch.randn(tokenizer.get_vocab_size(), DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], device="cpu").save(str(path))
