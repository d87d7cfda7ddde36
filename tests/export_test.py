"""An exported model: the run's own, complete, and strict about it."""

import dataclasses
import json
import shutil
import tarfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file

import calince_jax
from benchmarks.hostile import damage, settings
from calince_jax import evaluate, export
from calince_jax.cleaning import run as cleaning
from calince_jax.data import tokenizer
from calince_jax.errors import UserError
from calince_jax.inference import exported as exported_lib
from calince_jax.inference import from_run
from calince_jax.losses import density_ratio
from calince_jax.runtime import checkpoint


def run_export(workdir, out, **more):
  return export.export(export.Options(str(workdir), str(out), **more))


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
  """The folder of the model, exported after an evaluation of the run."""
  folder = tmp_path_factory.mktemp("export")
  run = shutil.copytree(trained_run, folder / "run")
  evaluate.evaluate(evaluate.Options(str(run), batch_size=8))
  return run_export(run, folder / "model")


@pytest.fixture(scope="module")
def model(exported):
  return calince_jax.load(exported)


def clips(rng, count=3, frames=4, height=32, width=32):
  shape = (count, frames, height, width, 3)
  return rng.integers(0, 256, shape, np.uint8)


TEXTS = ["a red square moves left", "blue goes right", "nothing at all"]


def test_it_is_the_model_of_the_run(model, trained_run, rng):
  own, step, _ = from_run.open_run(str(trained_run))
  video = clips(rng)
  assert step == 6
  for method, inputs in (
    ("encode_video", (video,)),
    ("encode_text", (TEXTS,)),
    ("correspondence_score", (video, TEXTS)),
    ("confidence", (video, TEXTS)),
  ):
    ours, theirs = (
      getattr(model, method)(*inputs),
      getattr(own, method)(*inputs),
    )
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs, err_msg=method)


def test_embeddings_have_length_one_and_the_rest_are_probabilities(model, rng):
  video, text = model.encode_video(clips(rng)), model.encode_text(TEXTS)
  assert video.shape == text.shape == (3, 16)
  for embedding in (video, text):
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
  assert not np.allclose(text[0], text[1], atol=1e-4)
  for values in (
    model.correspondence_score(clips(rng), TEXTS),
    model.confidence(clips(rng), TEXTS),
  ):
    assert values.shape == (3,) and (values >= 0).all() and (values <= 1).all()


def test_confidence_is_read_from_the_frozen_posterior(model, rng):
  video = clips(rng)
  frozen = model.calibration
  outputs = {
    "head": model.logits(video, TEXTS),
    "cosine": (model.encode_video(video) * model.encode_text(TEXTS)).sum(-1),
  }
  x = sum(
    (values - frozen[name][0]) / frozen[name][1]
    for name, values in outputs.items()
  ) / np.sqrt(2)
  bins = np.linspace(-6, 18, 128 + 1)
  centres = (bins[1:] + bins[:-1]) / 2
  assert frozen["scorer"] == "both" and 0 <= frozen["noise_rate"] <= 0.9
  np.testing.assert_allclose(
    model.confidence(video, TEXTS),
    np.interp(x, centres, frozen["posterior"]),
    rtol=1e-4,
    atol=1e-5,
  )


def test_both_forms_of_the_parameters_are_the_same(exported, trained_run):
  flat = load_file(exported / "model.safetensors")
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(exported / "params")
  own = from_run.open_run(str(trained_run))[0].params
  for other in (exported_lib.flatten(tree), exported_lib.flatten(own)):
    assert flat.keys() == other.keys()
    for name, value in flat.items():
      np.testing.assert_array_equal(value, other[name], err_msg=name)
  assert {value.dtype for value in flat.values()} == {np.dtype("float32")}


def test_the_card_says_what_it_is_and_what_it_can(exported):
  card = (exported / "README.md").read_text()
  assert card.startswith("# model\n")
  for part in ('load("model")', "6 of 6 steps", "4 frames of 32 x 32"):
    assert part in card
  assert "| t2v_R@1 |" in card and "| 8.333 |" in card  # with its chance
  assert "tie_rule" in card


@pytest.mark.parametrize(
  "frames, height, width", [(1, 32, 32), (9, 32, 32), (4, 48, 80), (2, 20, 16)]
)
def test_clips_of_other_sizes_and_lengths(model, rng, frames, height, width):
  embedding = model.encode_video(clips(rng, 2, frames, height, width))
  assert embedding.shape == (2, 16) and np.isfinite(embedding).all()


def test_a_long_wide_clip_is_sampled_evenly_and_cut_in_the_middle(model, rng):
  video = clips(rng, 1, 8, 32, 48)
  middle = video[:, 1::2, :, 8:40]  # the later of each two frames
  np.testing.assert_array_equal(
    model.encode_video(video), model.encode_video(middle)
  )


@pytest.mark.parametrize(
  "video",
  [
    np.zeros((1, 4, 32, 32, 3), np.float32),
    np.zeros((4, 32, 32, 3), np.uint8),
    np.zeros((1, 4, 32, 32, 1), np.uint8),
    np.zeros((1, 0, 32, 32, 3), np.uint8),
    np.zeros((1, 4, 0, 32, 3), np.uint8),
    np.zeros((0, 4, 32, 32, 3), np.uint8),
    [np.zeros((4, 32, 32, 3), np.uint8), np.zeros((3, 32, 32, 3), np.uint8)],
    None,
    (frame for frame in ()),
    "clip.mp4",
  ],
)
def test_what_is_not_a_batch_of_clips_is_refused(model, video):
  with pytest.raises(UserError, match=r"uint8 \[B, T, H, W, 3\]"):
    model.encode_video(video)
  with pytest.raises(UserError, match=r"uint8 \[B, T, H, W, 3\]"):
    model.confidence(video, ["a dog"])


def test_wrong_texts_are_refused(model, rng):
  with pytest.raises(UserError, match="list of str"):
    model.encode_text("a dog")
  for texts in (None, 3, {"a": 1}, (word for word in "ab")):
    with pytest.raises(UserError, match="list of str, not a"):
      model.encode_text(texts)
    with pytest.raises(UserError, match="list of str, not a"):
      model.confidence(clips(rng), texts)
  with pytest.raises(UserError, match="number 1 is a NoneType"):
    model.encode_text(["a dog", None])
  with pytest.raises(UserError, match="empty list"):
    model.encode_text([])
  with pytest.raises(UserError, match="text 1 of 2 is empty"):
    model.encode_text(["a dog", " "])
  with pytest.raises(UserError, match="3 clips and 2 texts"):
    model.correspondence_score(clips(rng), TEXTS[:2])


def test_infonce_has_a_confidence_by_its_cosine_and_no_head(
  infonce_run, tmp_path, rng
):
  model = calince_jax.load(run_export(infonce_run, tmp_path / "model"))
  assert model.encode_video(clips(rng)).shape == (3, 16)
  assert model.calibration["scorer"] == "cosine"
  confidence = model.confidence(clips(rng), TEXTS)
  assert ((confidence >= 0) & (confidence <= 1)).all()
  with pytest.raises(UserError, match="without a correspondence head"):
    model.correspondence_score(clips(rng), TEXTS)


# -------------------------------------------------------- what load refuses


def change_weights(folder, change):
  path = folder / "model.safetensors"
  flat = load_file(path)
  change(flat)
  save_file(flat, path)
  change_config(folder, lambda document: None)


def change_config(folder, change):
  """With new checksums, as an export of wrong things would have them."""
  document = json.loads((folder / "config.json").read_text())
  change(document)
  exported_lib.write_document(folder, document)


def other_tokenizer(folder):
  texts = ["quite other words", "and few of them"]
  tokenizer.train_tokenizer(texts, folder / "tokenizer.model", vocab_size=30)
  change_config(folder, lambda document: None)


def set_in(section, **values):
  return lambda folder: change_config(
    folder, lambda document: document[section].update(values)
  )


def flipped(name):
  def flip(folder):
    data = bytearray((folder / name).read_bytes())
    data[-5] ^= 1
    (folder / name).write_bytes(data)

  return flip


def cut(name):
  def halve(folder):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])

  return halve


KERNEL = "video_projection/kernel"
BROKEN = {
  "missing tensor": (
    lambda folder: change_weights(folder, lambda flat: flat.pop(KERNEL)),
    f"1 missing: {KERNEL}",
  ),
  "extra tensor": (
    lambda folder: change_weights(
      folder, lambda flat: flat.update(more=np.zeros(3, np.float32))
    ),
    "1 unexpected: more",
  ),
  "wrong shape": (
    lambda folder: change_weights(
      folder, lambda flat: flat.update({KERNEL: flat[KERNEL][:, :8].copy()})
    ),
    f"1 misshapen: {KERNEL} .*8.*16",
  ),
  "wrong dtype": (
    lambda folder: change_weights(
      folder, lambda flat: flat.update({KERNEL: flat[KERNEL].astype(np.int32)})
    ),
    f"1 misshapen: {KERNEL} .*int32.*float32",
  ),
  "damaged weights": (cut("model.safetensors"), "model.safetensors"),
  "no weights": (
    lambda folder: (folder / "model.safetensors").unlink(),
    "model.safetensors is missing",
  ),
  "damaged JSON": (cut("config.json"), "config.json is damaged"),
  "newer format": (
    lambda folder: change_config(
      folder, lambda document: document.update(format_version=99)
    ),
    "format 99",
  ),
  "no model": (
    lambda folder: change_config(
      folder, lambda document: document.pop("model")
    ),
    "config.json lacks .'model'",
  ),
  "unknown model field": (
    lambda folder: change_config(
      folder, lambda document: document["model"].update(magic=1)
    ),
    "magic",
  ),
  "unknown size": (
    lambda folder: change_config(
      folder, lambda document: document["model"]["video"].update(size="XXL")
    ),
    "XXL",
  ),
  "another model": (
    lambda folder: change_config(
      folder, lambda document: document["model"].update(embedding_dim=24)
    ),
    "does not fit the model: .*misshapen",
  ),
  "no noise rate": (
    lambda folder: change_config(
      folder, lambda document: document["calibration"].pop("noise_rate")
    ),
    "noise_rate",
  ),
  "no sampling": (
    lambda folder: change_config(
      folder, lambda document: document["preprocessing"].pop("frames")
    ),
    "frames",
  ),
  "a flipped bit of the weights": (
    flipped("model.safetensors"),
    "model.safetensors is damaged: it has other bytes",
  ),
  "a flipped bit of the tokenizer": (
    flipped("tokenizer.model"),
    "tokenizer.model is damaged: it has other bytes",
  ),
  "a number changed by hand": (
    lambda folder: (folder / "config.json").write_text(
      (folder / "config.json")
      .read_text()
      .replace('"dropout": 0', '"dropout": 1')
    ),
    "config.json is damaged or was changed by hand",
  ),
  "no checksums": (
    lambda folder: (folder / "config.json").write_text(
      json.dumps(
        {
          name: part
          for name, part in json.loads(
            (folder / "config.json").read_text()
          ).items()
          if name != "sha256"
        }
      )
    ),
    "its checksums are not those of export",
  ),
  "weights that are no numbers": (
    lambda folder: change_weights(
      folder, lambda flat: flat[KERNEL].__setitem__((0, 0), np.nan)
    ),
    f"not finite, in 1 arrays: {KERNEL}",
  ),
  "frames that are not the model's": (
    set_in("preprocessing", num_frames=8),
    "preprocessing.num_frames=8 is not the model's 4",
  ),
  "a size that is not the model's": (
    set_in("preprocessing", image_size=64),
    "preprocessing.image_size=64 is not the model's 32",
  ),
  "a noise rate that is no share": (
    set_in("calibration", noise_rate=5.0),
    "'calibration' is not as export writes it",
  ),
  "a confidence of 5": (
    set_in("calibration", posterior=[5.0] * density_ratio.BINS),
    "'calibration' is not as export writes it",
  ),
  "a mean that is no number": (
    set_in("calibration", head=[float("nan"), 1.0]),
    "'calibration' is not as export writes it",
  ),
  "no tokenizer": (
    lambda folder: (folder / "tokenizer.model").unlink(),
    "tokenizer.model is missing",
  ),
  "damaged tokenizer": (cut("tokenizer.model"), "tokenizer.model"),
  "another tokenizer": (other_tokenizer, "tokenizer.model has .* pieces"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_refused_and_the_fault_named(
  exported, tmp_path, kind
):
  damage, said = BROKEN[kind]
  folder = shutil.copytree(exported, tmp_path / "model")
  damage(folder)
  with pytest.raises(UserError, match=said):
    calince_jax.load(folder)


# ------------------------------------------------------------ what is written


def test_nothing_is_overwritten(trained_run, exported):
  before = (exported / "README.md").read_bytes()
  with pytest.raises(UserError, match="exists already"):
    run_export(trained_run, exported)
  assert (exported / "README.md").read_bytes() == before


def test_an_interrupted_export_leaves_nothing_under_the_name(
  model, trained_run, tmp_path, monkeypatch
):
  def interrupted(*_):
    raise KeyboardInterrupt

  out = tmp_path / "model"
  with monkeypatch.context() as patch:
    patch.setattr(exported_lib, "check_equal", interrupted)
    with pytest.raises(KeyboardInterrupt):
      exported_lib.write(
        out, model, tokenizer=tokenizer_of(trained_run), card=""
      )
  assert not out.exists()
  # The next one is whole; and it is of another step and other parameters.
  run_export(trained_run, out, step=3, params="params")
  assert [path.name for path in tmp_path.iterdir()] == ["model"]
  assert "3 of 6 steps" in (out / "README.md").read_text()
  ours = exported_lib.flatten(calince_jax.load(out).params)
  _, saved = checkpoint.restore_parts(str(trained_run), 3, ["params"])
  for name, value in exported_lib.flatten(saved["params"]).items():
    np.testing.assert_array_equal(ours[name], value, err_msg=name)
  kernel = "video_projection/kernel"
  for step, params in ((3, "ema_params"), (6, "params")):
    _, saved = checkpoint.restore_parts(str(trained_run), step, [params])
    other = exported_lib.flatten(saved[params])[kernel]
    assert not np.array_equal(ours[kernel], other)
  with pytest.raises(UserError, match="not 5"):
    run_export(trained_run, tmp_path / "other", step=5)


def test_a_model_that_differs_is_not_exported(
  model, trained_run, tmp_path, monkeypatch
):
  right = exported_lib.flatten

  def wrong(params):
    return {
      name: np.asarray(value + 1) for name, value in right(params).items()
    }

  monkeypatch.setattr(exported_lib, "flatten", wrong)
  out = tmp_path / "model"
  with pytest.raises(RuntimeError, match="differs from the run"):
    exported_lib.write(out, model, tokenizer=tokenizer_of(trained_run), card="")
  assert not out.exists()


def tokenizer_of(run):
  return (run / "tokenizer.model").read_bytes()


def test_a_model_runs_where_there_is_one_device(model, rng):
  leaves = jax.tree.leaves(model.params)
  assert {len(leaf.devices()) for leaf in leaves} == {1}


def test_whatever_stands_in_config_json_there_is_one_message(
  exported, tmp_path
):
  folder = shutil.copytree(exported, tmp_path / "model")
  rng = np.random.default_rng(0)
  said = [
    settings.attempt(settings.open_export, folder)
    for _ in settings.changed(folder / "config.json", 80, rng)
  ]
  assert [words for words in said if settings.is_fault(words)] == []
  assert said.count("") < 40
  calince_jax.load(folder)  # mended again


def test_whatever_stands_in_the_weights_there_is_one_message(
  exported, tmp_path
):
  folder = shutil.copytree(exported, tmp_path / "model")
  path = folder / "model.safetensors"
  good = path.read_bytes()
  header = 8 + int.from_bytes(good[:8], "little")
  rng = np.random.default_rng(0)
  broken = [(2**63).to_bytes(8, "little") + good[8:], b"", good[:header]]
  broken.append(b"\x80\x04cos\nsystem\n(S'true'\ntR.")  # a pickle
  for _ in range(40):
    data = bytearray(good)
    data[rng.integers(header)] ^= 1 << rng.integers(8)
    broken.append(bytes(data))
  said = []
  for data in broken:
    path.write_bytes(data)
    said.append(settings.attempt(calince_jax.load, folder))
  assert [words for words in said if settings.is_fault(words)] == []
  assert all(said[:4])


def test_no_damage_of_an_export_is_silent(exported, tmp_path):
  rng = np.random.default_rng(4)
  for turn in range(2 * len(damage.DAMAGES)):
    what, words = damage.tried(
      exported, tmp_path / "model", damage.open_export, rng, turn
    )
    assert not settings.is_fault(words), (what, words)


def test_a_full_disk_leaves_nothing_of_an_export(
  trained_run, tmp_path, monkeypatch
):
  def full(*_, **__):
    raise RuntimeError("I/O error: No space left on device (os error 28)")

  monkeypatch.setattr(exported_lib, "save_file", full)
  with pytest.raises(
    UserError, match="cannot be written .*No space.*make room"
  ):
    run_export(trained_run, tmp_path / "model")
  assert [*tmp_path.iterdir()] == []


def test_a_run_whose_config_is_of_another_model_is_refused(
  trained_run, tmp_path
):
  run = shutil.copytree(trained_run, tmp_path / "run")
  document = json.loads((run / "config.json").read_text())
  document["config"]["model"]["embedding_dim"] = 24
  (run / "config.json").write_text(json.dumps(document))
  with pytest.raises(UserError, match="and config.json does not fit the model"):
    from_run.open_run(str(run))


def test_an_export_of_the_format_before_loads(tmp_path):
  """Its parameters are 0 to 6 in turn, see goldens/make_checkpoint.py."""
  with tarfile.open(ROOT / "tests/goldens/export_v2.tar.xz") as archive:
    archive.extractall(tmp_path, filter="data")
  document = json.loads((tmp_path / "config.json").read_text())
  assert document["format_version"] == 2 and document["model"]["video_size"]
  model = calince_jax.load(tmp_path)
  for leaf in jax.tree.leaves(model.params):
    pattern = (np.arange(leaf.size) % 7).reshape(leaf.shape)
    np.testing.assert_array_equal(leaf, pattern.astype(np.float32))
  assert model.config.video.name == "vit" and model.config.mask_id == 4
  clips = np.zeros((2, 4, 32, 32, 3), np.uint8)
  assert model.encode_video(clips).shape == (2, model.config.embedding_dim)
  assert model.confidence(clips, ["a red square", "green"]).shape == (2,)


def test_clean_encodes_prepared_clips_by_an_export(
  exported, tiny_dataset, tmp_path, capsys
):
  out = tmp_path / "out"
  options = cleaning.Options(
    out=str(out), data=str(tiny_dataset), model=str(exported), folds=4, worst=2
  )
  cleaning.run(dataclasses.replace(options, keep=0.5))
  rows = pq.read_table(out / "pairs.parquet").to_pylist()
  assert len(rows) == 80 and len({row["id"] for row in rows}) == 40
  # Both captions of a clip are scored by models that saw neither.
  folds = {(row["id"], row["fold"]) for row in rows}
  assert len(folds) == 40
  assert (out / "report.html").read_text().count("data:image/webp") == 2
  assert "few" in capsys.readouterr().out  # 80 pairs are
  with pytest.raises(UserError, match="other options"):
    cleaning.run(dataclasses.replace(options, folds=5))
