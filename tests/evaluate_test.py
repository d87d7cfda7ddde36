"""Evaluation of a run: its files, its numbers, its errors."""

import base64
import copy
import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from calince_jax import evaluate
from calince_jax.data.input import batches as pipeline
from calince_jax.data.records import schema, writer
from calince_jax.data.records.reader import ClipReader, read_info
from calince_jax.errors import UserError
from calince_jax.evals import tasks
from calince_jax.inference import score
from calince_jax.training import setup

TASKS = (
  "retrieval",
  "video_retrieval",
  "recognition",
  "zero_shot",
  "calibration",
)


def run_tasks(workdir, task="retrieval", **more):
  options = evaluate.Options(str(workdir), task, batch_size=8, **more)
  return evaluate.evaluate(options)


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
  """A copy that may be written to."""
  workdir = tmp_path_factory.mktemp("evaluate") / "run"
  return shutil.copytree(trained_run, workdir)


@pytest.fixture(scope="module")
def results(run):
  """All four tasks at once, as their files say."""
  returned = run_tasks(run, ",".join(TASKS))
  files = {
    task: json.loads((run / "eval" / f"{task}.json").read_text())
    for task in TASKS
  }
  assert returned == files
  return files


@pytest.fixture(scope="module")
def evaluation(run):
  """The run's model, compiled once, and its data."""
  return tasks.Evaluation(evaluate.Options(str(run), batch_size=8))


def variant(source, folder, change):
  """A data set of the changed records of `source`; None leaves one out."""
  shards, splits = {}, {}
  folder.mkdir()
  info = read_info(source)
  for split in info.splits:
    reader = ClipReader(source, split)
    changed = [change(record) for record in reader.read(range(len(reader)))]
    records = [record for record in changed if record is not None]
    path = schema.shard_path(folder, split, 0, 1)
    shards[split] = [(len(records), writer.write_shard(path, records))]
    pairs = sum(len(record["texts"]) for record in records)
    splits[split] = {"clips": len(records), "pairs": pairs}
  shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
  info = dataclasses.replace(info, splits=splits)
  writer.write_info(folder, info, shards)
  return folder


def test_every_result_states_its_protocol(results, tiny_dataset):
  for task, result in results.items():
    protocol = result["protocol"]
    assert protocol["data"] == tiny_dataset.name
    assert protocol["split"] == ("train" if task == "calibration" else "test")
    assert protocol["checkpoint_step"] == 6 and protocol["seed"] == 0
    assert protocol["frames"] == 4 and protocol["resolution"] == 32
    assert protocol["dtype"] == "float32"
    assert protocol["params"] == "ema_params"
    assert protocol["views"] == "1 clips x 1 crops"
  assert results["retrieval"]["protocol"]["clips"] == 12
  assert results["retrieval"]["protocol"]["queries"] == 24
  assert "expectation" in results["retrieval"]["protocol"]["tie_rule"]


def test_metrics_are_in_range_with_chance_beside(results):
  for task in ("retrieval", "video_retrieval", "recognition", "zero_shot"):
    metrics, chance = results[task]["metrics"], results[task]["chance"]
    assert metrics.keys() == chance.keys()
    for name, value in (metrics | {}).items():
      low, high = (1, 24) if name.endswith("R") else (0, 100)
      assert low <= value <= high, (task, name)
      assert low <= chance[name] <= high, (task, name)
  retrieval = results["retrieval"]
  assert retrieval["dual_softmax"].keys() == retrieval["metrics"].keys()
  for way in ("t2v", "v2t"):
    recalls = [retrieval["metrics"][f"{way}_R@{k}"] for k in (1, 5, 10)]
    assert recalls == sorted(recalls)


def test_chance_is_what_a_person_would_count(results):
  chance = results["retrieval"]["chance"]
  assert chance["t2v_R@1"] == pytest.approx(100 / 12)
  assert chance["t2v_R@10"] == pytest.approx(1000 / 12)
  assert chance["t2v_MedR"] == pytest.approx(6.5)
  assert chance["v2t_R@1"] == pytest.approx(100 * 2 / 24)
  # Half of the 40 training clips go left.
  assert results["video_retrieval"]["chance"]["R@1"] == pytest.approx(50)
  assert results["video_retrieval"]["metrics"]["R@50"] == 100
  assert results["recognition"]["chance"]["top1"] == pytest.approx(50)
  assert results["calibration"]["chance"] == {"auc": 0.5}


def test_retrieval_is_what_plain_loops_compute(
  results, evaluation, tiny_dataset
):
  model = evaluation.model
  reader = ClipReader(tiny_dataset, "test")
  (batch,) = pipeline.eval_batches(reader, evaluation.sampling, batch_size=12)
  clips = reader.read(range(12))
  video = model.encode_video(batch["video"]).astype(np.float64)
  owner = [v for v, clip in enumerate(clips) for _ in clip["texts"]]
  texts = [text for clip in clips for text in clip["texts"]]
  text = model.encode_text(texts).astype(np.float64)

  def places(own, others):
    """How many others are better than the best of one's own, and as good."""
    assert sum(one == max(own) for one in own) == 1
    return sum(s > max(own) for s in others), sum(s == max(own) for s in others)

  found = {"t2v": [], "v2t": []}
  for q, mine in enumerate(owner):
    others = [text[q] @ video[v] for v in range(12) if v != mine]
    found["t2v"].append(places([text[q] @ video[mine]], others))
  for v in range(12):
    own, others = (
      [video[v] @ text[q] for q in range(24) if (owner[q] == v) == mine]
      for mine in (True, False)
    )
    # Several clips share a caption: these tie.
    found["v2t"].append(places(own, others))
  metrics = results["retrieval"]["metrics"]
  for way, all_places in found.items():
    for k in (1, 5, 10):
      # In random order one is at each place among its equals alike.
      hits = [min(max((k - b) / (t + 1), 0), 1) for b, t in all_places]
      share = 100 * np.mean(hits)
      assert metrics[f"{way}_R@{k}"] == pytest.approx(share), (way, k)
    ranks = [1 + better + tied / 2 for better, tied in all_places]
    assert metrics[f"{way}_MedR"] == pytest.approx(np.median(ranks))
    assert metrics[f"{way}_MeanR"] == pytest.approx(np.mean(ranks))

  for shown in results["retrieval"]["queries"]:
    # Several clips share a caption: the rank tells whose it is.
    same = [q for q, text in enumerate(texts) if text == shown["query"]]
    (q,) = [q for q in same if 1 + found["t2v"][q][0] == round(shown["rank"])]
    similarities = [hit["similarity"] for hit in shown["hits"]]
    np.testing.assert_allclose(
      similarities, np.sort(video @ text[q])[::-1][:5], atol=1e-6
    )
    for place, hit in enumerate(shown["hits"]):
      own = hit["id"] == clips[owner[q]]["id"]
      assert hit["right"] == own
      assert not own or place + 1 == shown["rank"]


def test_pictures_can_be_opened(results):
  queries = results["retrieval"]["queries"]
  assert len(queries) == 8 and {len(shown["hits"]) for shown in queries} == {5}
  strips = [hit["thumbnail"] for hit in queries[0]["hits"]]
  strips += [results["calibration"]["worst"][0]["thumbnail"]]
  for strip in strips:
    picture = Image.open(io.BytesIO(base64.b64decode(strip)))
    assert picture.format == "JPEG" and picture.size == (360, 96)


def test_calibration_lists_every_pair(results, run):
  result = results["calibration"]
  assert result["metrics"]["noise_rate_true"] == pytest.approx(8 / 80)
  for name in ("auc", "auc_cosine", "ece", "noise_rate_estimate"):
    assert 0 <= result["metrics"][name] <= 1
  histogram = result["histogram"]
  assert len(histogram["edges"]) == 21
  assert sum(histogram["matched"]) == 72
  assert sum(histogram["mismatched"]) == 8
  assert sum(row["count"] for row in result["reliability"]) == 80

  with (run / "eval" / "pairs.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  ranked = [float(row["alignment_score"]) for row in rows]
  assert len(rows) == 80 and ranked == sorted(ranked)
  trusted = [float(row["confidence"]) for row in rows]
  assert trusted == sorted(
    trusted
  )  # higher alignment scores are never trusted less
  assert sorted(int(row["pair_index"]) for row in rows) == list(range(80))
  worst = result["worst"]
  assert len(worst) == 48
  assert [pair["text"] for pair in worst] == [row["text"] for row in rows[:48]]
  # The truth comes from the record, not from the text.
  for pair in worst:
    number = int(pair["id"].split("-")[1])
    long = pair["text"].startswith("a ")
    assert pair["matched"] == (1 if long or number % 5 else 0)


def test_logits_and_cosines_are_those_of_the_model(
  results, run, evaluation, tiny_dataset
):
  model = evaluation.model
  reader = ClipReader(tiny_dataset, "train")
  (batch,) = pipeline.eval_batches(reader, evaluation.sampling, batch_size=40)
  records = reader.read(range(40))
  text = model.text_outputs(*model.tokenize([r["texts"][1] for r in records]))
  video = model.video_outputs(batch["video"])
  index = np.array([record["pair_indices"][1] for record in records], np.int32)
  # The head that was not trained on the pair.
  expected = {
    "head": model.held_out_logits(video, text, index),
    "cosine": (video["embedding"] * text["embedding"]).sum(axis=-1),
  }
  with (run / "eval" / "pairs.csv").open(newline="") as file:
    rows = {int(row["pair_index"]): row for row in csv.DictReader(file)}
  for name, values in expected.items():
    np.testing.assert_allclose(
      [float(rows[2 * i + 1][name]) for i in range(40)],
      values,
      rtol=1e-3,
      atol=1e-5,
    )
  assert evaluation.config["total_steps"] == 6


def test_the_noise_rate_is_that_of_the_data_set():
  """Known densities: 300 of 1,000 pairs are distributed as the negatives."""
  rng = np.random.default_rng(0)
  wrong = np.arange(1_000) < 300
  cosine = rng.normal(size=(1_000, 5)).astype(np.float32)
  cosine[:, 0] += np.where(wrong, 0, 5)
  pairs = [{"matched": int(not w)} for w in wrong]
  result = tasks.compare_with_truth(pairs, {"cosine": 0.1 * cosine}, "cosine")
  m = result["metrics"]
  assert m["auc"] == m["auc_cosine"] > 0.99
  assert m["ece"] < 0.03
  assert m["noise_rate_estimate"] == pytest.approx(0.3, abs=0.05)
  confidence = np.array([pair["confidence"] for pair in pairs])
  assert confidence[wrong].mean() < 0.1 < 0.9 < confidence[~wrong].mean()


def test_negatives_are_captions_of_other_clips(evaluation, tiny_dataset):
  model = evaluation.model
  reader = ClipReader(tiny_dataset, "train")
  settings = {"num_negatives": 4, "seed": 0}
  found = [
    score.score_pairs(
      model, reader, evaluation.sampling, batch_size=size, **settings
    )
    for size in (40, 18)  # 18: the last batch holds four clips
  ]
  texts = {t for record in reader.read(range(40)) for t in record["texts"]}
  embedding = model.encode_text(sorted(texts))
  (batch,) = pipeline.eval_batches(reader, evaluation.sampling, batch_size=40)
  possible = model.encode_video(batch["video"]) @ embedding.T
  for pairs, outputs in found:
    assert outputs["cosine"].shape == outputs["head"].shape == (80, 5)
    assert sorted(pair["pair_index"] for pair in pairs) == list(range(80))
    for pair, cosines in zip(pairs, outputs["cosine"], strict=True):
      distance = np.abs(cosines[:, None] - possible[pair["record"]]).min(axis=1)
      assert (distance < 1e-4).all()
      assert len(np.unique(cosines.round(5))) > 1
  with pytest.raises(UserError, match="batch_size=5"):
    score.score_pairs(
      model, reader, evaluation.sampling, batch_size=4, **settings
    )


def test_more_views_change_the_features(evaluation):
  def features(**views):
    other = copy.copy(evaluation)
    other.options = dataclasses.replace(evaluation.options, **views)
    return other.videos("test")

  once = features()
  seen = [once]
  for views in ({"num_clips": 2}, {"num_crops": 3}):
    more = features(**views)
    assert more["feature"].shape == once["feature"].shape
    norm = np.linalg.norm(more["embedding"], axis=1)
    np.testing.assert_allclose(norm, 1, rtol=1e-5)
    for other in seen:
      assert not np.allclose(more["feature"], other["feature"], rtol=1e-3)
    seen.append(more)


def test_another_checkpoint_and_the_plain_parameters(run, results):
  early = run_tasks(run, step=3)["retrieval"]
  assert early["protocol"]["checkpoint_step"] == 3
  plain = run_tasks(run, params="params")["retrieval"]
  nearest = [
    result["queries"][0]["hits"][0]["similarity"]
    for result in (early, plain, results["retrieval"])
  ]
  assert len(set(nearest)) == 3
  with pytest.raises(UserError, match=r"\[3, 6\], not 4"):
    run_tasks(run, step=4)


def test_another_data_set(run, tiny_dataset, tmp_path):
  def red_only(record):
    return record if "red" in record["texts"][0] else None

  data = variant(tiny_dataset, tmp_path / "red", red_only)
  result = run_tasks(run, data=str(data))["retrieval"]
  assert result["protocol"]["data"] == "red"
  assert result["protocol"]["clips"] == 3
  assert result["chance"]["t2v_R@1"] == pytest.approx(100 / 3)


def test_unlabelled_data_is_refused_where_labels_are_needed(
  run, tiny_dataset, tmp_path
):
  def unlabelled(record):
    return record | {"label": "", "matched": [-1, -1]}

  data = variant(tiny_dataset, tmp_path / "bare", unlabelled)
  for task in ("video_retrieval", "recognition"):
    with pytest.raises(UserError, match="bare has a label.*column 'label'"):
      run_tasks(run, task, data=str(data))
  # Without the truth there is no AUC, and the worst pairs are still found.
  result = run_tasks(run, "calibration", data=str(data))["calibration"]
  assert "auc" not in result["metrics"] and result["chance"] == {}
  assert sum(result["histogram"]["unknown"]) == 80
  assert {pair["matched"] for pair in result["worst"]} == {None}


def test_a_known_share_of_captions_can_be_exchanged(run, results):
  known = dict(mismatch=0.3, mismatch_seed=4)
  result = run_tasks(run, "calibration,retrieval", **known)
  protocol = result["calibration"]["protocol"]
  assert protocol["captions exchanged"] == "share 0.3, uniform, seed 4"
  # 12 of the 40 clips, two captions each; of the rest, some were wrong before.
  truth = result["calibration"]["metrics"]["noise_rate_true"]
  assert 24 / 80 <= truth <= 32 / 80
  plain = results["calibration"]
  assert "captions exchanged" not in plain["protocol"]
  assert plain["metrics"]["noise_rate_true"] == pytest.approx(8 / 80)
  # The other split is as it was.
  assert "captions exchanged" not in result["retrieval"]["protocol"]
  assert result["retrieval"]["metrics"] == results["retrieval"]["metrics"]


def test_what_a_run_was_trained_on_is_exchanged_again(
  trained_run, tiny_dataset, tmp_path
):
  run = shutil.copytree(trained_run, tmp_path / "run")
  document = json.loads((run / "config.json").read_text())
  document["config"]["data"] |= {"mismatch": 0.4, "mismatch_seed": 2}
  (run / "config.json").write_text(json.dumps(document))

  def texts(**more):
    evaluation = tasks.Evaluation(evaluate.Options(str(run), **more))
    reader = evaluation.reader("train")
    return [record["texts"] for record in reader.read(range(40))]

  config = tiny_config(
    tiny_dataset, changes={"data.mismatch": 0.4, "data.mismatch_seed": 2}
  )
  (trained_on,) = setup.open_data(config.to_dict())["readers"]
  assert texts() == [r["texts"] for r in trained_on.read(range(40))]
  plain = texts(mismatch=0.0)
  assert texts() != plain
  assert texts(data=str(tiny_dataset)) == plain
  assert texts(train_split="test", mismatch=0.2) == texts()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"task": "captioning"}, "'captioning'.*'retrieval'"),
    ({"split": "val"}, "'val'.*'test', 'train'"),
    ({"data": "nowhere"}, "nowhere is not a prepared data set"),
    ({"params": "momentum"}, "'momentum'.*ema_params"),
  ],
)
def test_wrong_choices_are_named(run, changes, message):
  with pytest.raises(UserError, match=message):
    run_tasks(run, **changes)


def test_a_folder_that_is_no_run(tmp_path):
  with pytest.raises(UserError, match="not the folder of a run"):
    run_tasks(tmp_path)


def test_infonce_is_evaluated_by_its_cosine(infonce_run, tmp_path):
  run = shutil.copytree(infonce_run, tmp_path / "run")
  result = run_tasks(run, "calibration")["calibration"]
  assert result["protocol"]["scorer"] == "cosine"
  assert "auc_head" not in result["metrics"]
  assert result["metrics"]["auc"] == result["metrics"]["auc_cosine"]
