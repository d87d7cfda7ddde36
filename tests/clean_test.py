import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from calince_jax.cleaning import examine, pictures, run
from calince_jax.cleaning.features import save_features
from calince_jax.cleaning.run import Options
from calince_jax.errors import UserError
from calince_jax.runtime import compile_cache

P = 600
SHARE = 0.3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """A manifest of empty videos, features, and 30 % exchanged captions."""
  folder = tmp_path_factory.mktemp("corpus")
  rng = np.random.default_rng(0)
  content = rng.normal(size=(P, 5))
  video = content @ rng.normal(size=(5, 20)) + rng.normal(size=(P, 20))
  text = content @ rng.normal(size=(5, 8)) + 0.3 * rng.normal(size=(P, 8))
  texts = [f"clip {i} shows thing {i % 7}" for i in range(P)]
  chosen = rng.choice(P, round(SHARE * P), replace=False)
  source = np.arange(P)
  source[chosen] = np.roll(chosen, 1)
  for i in range(P):
    (folder / f"{i}.mp4").write_bytes(b"")
  with open(folder / "clips.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["video", "text", "group", "matched"])
    for i in range(P):
      row = [f"{i}.mp4", texts[source[i]], f"day {i // 12}"]
      writer.writerow([*row, int(source[i] == i)])
  video_rows = np.stack([video, video], axis=1).astype(np.float32)
  save_features(folder / "v.npy", video_rows, [f"{i}.mp4" for i in range(P)])
  save_features(folder / "t.npy", text.astype(np.float32), texts)
  return folder


def options(corpus, out, **changes):
  return Options(
    **{
      "out": str(out),
      "manifest": str(corpus / "clips.csv"),
      "video_features": str(corpus / "v.npy"),
      "text_features": str(corpus / "t.npy"),
      "worst": 3,
      "folds": 5,
    }
    | changes
  )


@pytest.fixture(scope="module")
def result(corpus, tmp_path_factory):
  compile_cache.enable()
  out = tmp_path_factory.mktemp("clean") / "out"
  return out, run.run(options(corpus, out))


def test_wrong_captions_are_found_and_counted(result):
  out, lines = result
  table = pq.read_table(out / "pairs.parquet").to_pydict()
  matched = np.array(table["matched"])
  confidence = np.array(table["confidence"])
  assert len(matched) == P
  assert roc_auc_score(matched, table["score"]) > 0.9
  assert abs((1 - confidence).mean() - SHARE) < 0.07
  worst = np.argsort(confidence)[:100]
  assert abs(matched[worst].mean() - confidence[worst].mean()) < 0.1
  assert lines[0].startswith("about ") and f"of {P}" in lines[0]
  with open(out / "pairs.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["id"] for row in rows] == table["id"]


def test_the_better_caption_of_a_wrong_pair_is_often_its_own(result):
  out, _ = result
  rows = pq.read_table(out / "pairs.parquet").to_pylist()
  wrong = [row for row in rows if not row["matched"]]
  own = [f"clip {row['id'][:-4]} shows" for row in wrong]
  right = [
    (row["better_text"] or "").startswith(text)
    for row, text in zip(wrong, own, strict=True)
  ]
  assert np.mean(right) > 0.1  # chance is 1 in 600


def test_the_filtered_manifest_is_one_that_prepare_reads(result, corpus):
  out, _ = result
  pairs = run.open_pairs(
    options(corpus, out, manifest=str(out / "clean.csv"), root=str(corpus))
  )
  table = pq.read_table(out / "pairs.parquet").to_pydict()
  truth = dict(zip(table["id"], table["matched"], strict=True))
  kept = np.array([truth[pairs.clips[i].id] for i in pairs.clip])
  assert 0.3 * P < len(kept) < 0.75 * P
  assert kept.mean() > 0.88  # 0.95 is expected


def test_the_page_is_whole_and_escaped(result):
  out, _ = result
  page = (out / "report.html").read_text()
  assert page.rstrip().endswith("</html>")
  assert "http" not in page.replace("http-equiv", "")
  assert page.count('<figure class="pair') == 3
  assert "What filtering would cost" in page and "By group" in page


def test_killed_after_any_round_it_ends_with_the_same_bytes(
  result, corpus, tmp_path
):
  out, _ = result

  class Killed(Exception):
    pass

  def save_two(path, *args, **kwargs):
    if path.name in ("round-1.npz", "pairs.parquet"):
      raise Killed
    return atomic_file(path, *args, **kwargs)

  atomic_file = examine.atomic_file
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(examine, "atomic_file", save_two)
    with pytest.raises(Killed):
      run.run(options(corpus, tmp_path / "again"))
  run.run(options(corpus, tmp_path / "again"))
  for name in ("pairs.parquet", "pairs.csv", "clean.csv", "report.html"):
    assert (tmp_path / "again" / name).read_bytes() == (
      out / name
    ).read_bytes(), name


def test_what_is_kept_may_be_chosen_again(result, corpus):
  out, _ = result
  before = (out / "clean.csv").read_bytes()
  run.run(options(corpus, out, keep=0.5))
  assert len((out / "clean.csv").read_text().splitlines()) == 1 + P // 2
  run.run(options(corpus, out))
  assert (out / "clean.csv").read_bytes() == before


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"manifest": None}, "--manifest=FILE, --source=... or --data=DIR"),
    ({"video_features": None}, "nothing to judge the videos by"),
    ({"keep": 0.5, "keep_precision": 0.9}, "not both"),
    ({"model": "export"}, "prepared clips"),
    ({"seed": 1}, "other options"),
    ({"folds": 601, "fold_by": "clip", "new": True}, "too few"),
    ({"split": "test", "new": True}, "--split"),
    ({"video_features": "v.txt", "new": True}, "NAME.npy"),
    ({"keep_precision": 1.0}, "no pair is that sure"),
  ],
)
def test_contradictions_are_refused(result, corpus, tmp_path, changes, words):
  out, _ = result
  changes = dict(changes)
  if changes.pop("new", False):
    out = tmp_path / "new"
  with pytest.raises(UserError, match=words):
    run.run(options(corpus, out, **changes))


def test_a_folder_of_something_else_is_refused(corpus, tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(UserError, match="something else"):
    run.run(options(corpus, tmp_path))


def test_files_of_features_are_checked(corpus, tmp_path):
  rows = np.load(corpus / "v.npy")
  keys = [f"{i}.mp4" for i in range(P)]

  def wrong(words, rows, keys):
    save_features(tmp_path / "w.npy", rows, keys)
    with pytest.raises(UserError, match=words):
      run.run(
        options(
          corpus, tmp_path / "out", video_features=str(tmp_path / "w.npy")
        )
      )

  wrong("lacks the features of 1 of 600", rows[1:], keys[1:])
  wrong("JSON strings", rows, keys[1:])
  wrong("not floats", rows.astype(int), keys)
  rows = rows.copy()
  rows[5] = np.nan
  wrong("row 5 holds NaN", rows, keys)


def test_features_may_come_as_parquet(corpus, result, tmp_path):
  import pyarrow as pa

  out, _ = result
  rows = np.load(corpus / "v.npy").mean(axis=1)
  lines = (corpus / "v.keys.jsonl").read_text().splitlines()
  keys = [json.loads(line) for line in lines]
  table = pa.table({"key": keys, "features": list(rows)})
  pq.write_table(table, tmp_path / "v.parquet")
  run.run(
    options(
      corpus, tmp_path / "out", video_features=str(tmp_path / "v.parquet")
    )
  )
  ours, theirs = (
    pq.read_table(o / "pairs.parquet").to_pydict()["confidence"]
    for o in (tmp_path / "out", out)
  )
  np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_pictures_play(tmp_path):
  import base64
  import io

  def jpeg(value):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()

  data = pictures.animation([jpeg(20 * i) for i in range(12)])
  picture = Image.open(io.BytesIO(base64.b64decode(data)))
  assert picture.format == "WEBP" and picture.n_frames == pictures.FRAMES
  assert picture.height == pictures.HEIGHT
