"""Makes tests/goldens/towers: small models of transformers, and what they say.

    python tests/goldens/make_towers.py

Needs torch, transformers and tokenizers, in an environment of its own. Each
folder is what `save_pretrained` writes of a model with random weights, with
expected.safetensors: inputs, and the outputs of its own forward pass.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers as hf
from safetensors.numpy import save_file

OUT = (
  Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent) / "towers"
)
WIDTH, DEPTH, HEADS, HIDDEN = 16, 2, 2, 24
WORDS = ["a", "dog", "cat", "runs", "jumps", "over", "the", "red", "fox", "s"]
VIDEO_SHAPE = (2, 3, 24, 24, 3)  # clips, frames, pixels, channels
SENTENCES = ("The dog jumps.", "A red fox runs over cats")
LENGTHS = (8, 3)  # of two texts
SIZES = {
  "hidden_size": WIDTH,
  "num_hidden_layers": DEPTH,
  "num_attention_heads": HEADS,
  "intermediate_size": HIDDEN,
}
IMAGES = {"image_size": 24, "patch_size": 8}


def main():
  shutil.rmtree(OUT, ignore_errors=True)
  torch.manual_seed(0)
  images("vit", hf.ViTModel(hf.ViTConfig(**SIZES, **IMAGES)), 0.5, 0.5)
  images(
    "dinov2",
    hf.Dinov2Model(
      hf.Dinov2Config(
        **SIZES | {"intermediate_size": 2 * WIDTH}, **IMAGES, mlp_ratio=2
      )
    ),
    [0.485, 0.456, 0.406],
    [0.229, 0.224, 0.225],
  )
  siglip = hf.SiglipVisionConfig(**SIZES, **IMAGES)
  images("siglip", hf.SiglipVisionModel(siglip), 0.5, 0.5)
  clip()
  texts(
    "bert",
    hf.BertModel(
      hf.BertConfig(**SIZES, vocab_size=18, max_position_embeddings=12)
    ),
  )
  texts(
    "distilbert",
    hf.DistilBertModel(
      hf.DistilBertConfig(
        dim=WIDTH,
        n_layers=DEPTH,
        n_heads=HEADS,
        hidden_dim=HIDDEN,
        vocab_size=18,
        max_position_embeddings=12,
      )
    ),
  )


def clip():
  """Both towers and their projections in one folder."""
  model = hf.CLIPModel(
    hf.CLIPConfig(
      text_config=SIZES
      | {
        "vocab_size": len(clip_vocabulary()),
        "max_position_embeddings": 12,
        "bos_token_id": len(clip_vocabulary()) - 2,
        "eos_token_id": len(clip_vocabulary()) - 1,
        "pad_token_id": 0,
      },
      vision_config=SIZES | IMAGES,
      projection_dim=12,
    )
  )
  folder = save("clip", model)
  mean, std = [0.481, 0.458, 0.408], [0.269, 0.261, 0.276]
  write_preprocessor(folder, mean, std)
  video = clips()
  ids, mask = clip_texts()
  with torch.no_grad():
    frames = model.vision_model(normalised(video, mean, std)).pooler_output
    text = model.text_model(input_ids=ids, attention_mask=mask.long())
    text = text.pooler_output
    write_expected(
      folder,
      {
        "video": video,
        "frames": frames,
        "projected_frames": model.visual_projection(frames),
        "ids": ids.int(),
        "mask": mask,
        "feature": text,
        "projected": model.text_projection(text),
      },
    )
  write_bpe(folder)


def images(name, model, mean, std):
  folder = save(name, model)
  mean, std = ([x] * 3 if isinstance(x, float) else x for x in (mean, std))
  write_preprocessor(folder, mean, std)
  video = clips()
  with torch.no_grad():
    out = model(normalised(video, mean, std))
  last = out.last_hidden_state
  feature = out.pooler_output if name == "siglip" else last[:, 0]
  write_expected(folder, {"video": video, "frames": feature, "tokens": last})


def texts(name, model):
  folder = save(name, model)
  rng = np.random.default_rng(1)
  ids = torch.tensor(rng.integers(5, 18, (2, max(LENGTHS))))
  mask = torch.tensor(np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None])
  with torch.no_grad():
    out = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
  expected = {"ids": ids.int(), "mask": mask, "tokens": out}
  tokenizer = write_wordpiece(folder)
  means = []
  for text in SENTENCES:
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
      mean = model(input_ids=ids).last_hidden_state.mean(dim=1)
    means.append(torch.nn.functional.normalize(mean))
  write_expected(folder, expected | {"sentences": torch.cat(means)})


def write_expected(folder, values):
  arrays = {name: value.numpy().copy("C") for name, value in values.items()}
  save_file(arrays, folder / "expected.safetensors")


def save(name, model):
  """Weights of a size that makes every one of them matter."""
  model.eval()
  for parameter_name, parameter in model.named_parameters():
    noise = torch.randn_like(parameter)
    one_axis = parameter.ndim < 2
    centre = float(one_axis and parameter_name.endswith((".weight", "lambda1")))
    scale = 0.2 if one_axis else 1.0 / np.sqrt(parameter[0].numel())
    parameter.data = centre + scale * noise
  folder = OUT / name
  model.save_pretrained(folder)
  (folder / "generation_config.json").unlink(missing_ok=True)
  return folder


def clips():
  rng = np.random.default_rng(0)
  return torch.tensor(rng.integers(0, 256, VIDEO_SHAPE, np.uint8))


def normalised(video, mean, std):
  x = video.flatten(0, 1).permute(0, 3, 1, 2).double() / 255
  mean, std = (torch.tensor(x).double()[:, None, None] for x in (mean, std))
  return ((x - mean) / std).float()


def write_preprocessor(folder, mean, std):
  (folder / "preprocessor_config.json").write_text(
    json.dumps(
      {"image_mean": mean, "image_std": std, "rescale_factor": 1 / 255}
    )
  )


def write_wordpiece(folder):
  """18 pieces, lower-cased, as BERT's."""
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  pieces = [*special, *WORDS, "##s", "##ed", "."]
  vocabulary = {piece: i for i, piece in enumerate(pieces)}
  made = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
  )
  made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  made.add_special_tokens(special)
  made.decoder = tokenizers.decoders.WordPiece()
  made.save(str(folder / "tokenizer.json"), pretty=False)
  return made


def clip_vocabulary():
  letters = sorted(set("".join(WORDS)))
  pieces = [*letters, *(f"{x}</w>" for x in letters), "do", "dog</w>"]
  return [*pieces, "<|startoftext|>", "<|endoftext|>"]


def write_bpe(folder):
  """Letters and two merges, as CLIP's."""
  begin, end = "<|startoftext|>", "<|endoftext|>"
  vocabulary = {piece: i for i, piece in enumerate(clip_vocabulary())}
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocabulary,
      [("d", "o"), ("do", "g</w>")],
      unk_token=end,
      continuing_subword_prefix="",
      end_of_word_suffix="</w>",
    )
  )
  made.normalizer = tokenizers.normalizers.Lowercase()
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.post_processor = tokenizers.processors.RobertaProcessing(
    (end, vocabulary[end]), (begin, vocabulary[begin]), False, False
  )
  made.add_special_tokens([begin, end])
  made.save(str(folder / "tokenizer.json"), pretty=False)


def clip_texts():
  """Begin, words, end, and padding with the end as CLIP does."""
  size = len(clip_vocabulary())
  rng = np.random.default_rng(1)
  ids = rng.integers(0, size - 2, (2, max(LENGTHS)))
  mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
  ids[:, 0] = size - 2
  for row, length in zip(ids, LENGTHS, strict=True):
    row[length - 1 :] = size - 1
  return torch.tensor(ids), torch.tensor(mask)


if __name__ == "__main__":
  main()
