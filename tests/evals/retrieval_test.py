import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from calince_jax.errors import UserError
from calince_jax.evals import ranks, retrieval

NAMES = ["R@1", "R@5", "R@10", "MedR", "MeanR"]


def by_every_order(similarities, relevant, ks=(1, 5, 10)):
  """Loops over all orders of the gallery; ties keep the order's order."""
  Q, G = similarities.shape
  hits, ranks = np.zeros((Q, len(ks))), np.zeros(Q)
  for q in range(Q):
    for order in itertools.permutations(range(G)):
      ranked = sorted(order, key=lambda item, q=q: -similarities[q, item])
      rank = 1 + min(i for i, item in enumerate(ranked) if relevant[q, item])
      ranks[q] += rank / math.factorial(G)
      hits[q] += [(rank <= k) / math.factorial(G) for k in ks]
  result = {f"R@{k}": 100 * hits[:, i].mean() for i, k in enumerate(ks)}
  return result | {"MedR": np.median(ranks), "MeanR": ranks.mean()}


@pytest.mark.parametrize("several", [False, True])
def test_ties_are_resolved_as_over_every_order(several):
  rng = np.random.default_rng(several)
  similarities = rng.integers(0, 3, (8, 6)).astype(np.float32)
  relevant = np.eye(6, dtype=bool)[rng.integers(0, 6, 8)]
  if several:
    relevant |= rng.random((8, 6)) < 0.4
  want = by_every_order(similarities, relevant)
  got = retrieval.retrieval_metrics(similarities, relevant)
  assert list(got) == NAMES
  assert got == pytest.approx(want, abs=1e-9)
  lists = [np.flatnonzero(row) for row in relevant]
  assert retrieval.retrieval_metrics(similarities, lists) == got


def test_no_ties_is_the_plain_rank():
  similarities = np.array([[3, 2, 1], [3, 2, 1], [3, 1, 2]], np.float32)
  got = retrieval.retrieval_metrics(similarities, np.eye(3, dtype=bool))
  want = {"R@1": 100 / 3, "R@5": 100, "R@10": 100, "MedR": 2, "MeanR": 5 / 3}
  assert got == pytest.approx(want)


def test_rounded_similarities_cost_one_point_not_seven():
  """Rounding similarities makes ties; the expected rank hardly moves."""
  rng = np.random.default_rng(0)
  exact = rng.normal(size=(400, 400)) + 2.4 * np.eye(400)
  fine = exact.astype(np.float32)
  coarse = (np.round(exact * 2) / 2).astype(np.float32)
  relevant = np.eye(400, dtype=bool)
  a = retrieval.retrieval_metrics(fine, relevant)["R@1"]
  b = retrieval.retrieval_metrics(coarse, relevant)["R@1"]
  strict = 100 * np.mean(
    [(row >= row[i]).sum() == 1 for i, row in enumerate(coarse)]
  )
  assert abs(a - b) < 2
  assert a - strict > 4


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_similarities_must_be_float32(dtype):
  with pytest.raises(UserError, match="not float32"):
    retrieval.retrieval_metrics(np.eye(3, dtype=dtype), np.eye(3, dtype=bool))


def test_similarities_must_be_finite_and_queries_answerable():
  similarities = np.eye(3, dtype=np.float32)
  similarities[1, 2] = np.nan
  with pytest.raises(UserError, match="NaN"):
    retrieval.retrieval_metrics(similarities, np.eye(3, dtype=bool))
  with pytest.raises(UserError, match="query 1 has no right item"):
    retrieval.retrieval_metrics(np.eye(3, dtype=np.float32), [[0], [], [2]])


def test_chance_of_one_right_item_is_k_over_g():
  got = retrieval.chance([1, 1, 1], 8)
  want = {"R@1": 12.5, "R@5": 62.5, "R@10": 100, "MedR": 4.5, "MeanR": 4.5}
  assert got == pytest.approx(want)


def test_chance_is_what_random_similarities_give():
  rng = np.random.default_rng(1)
  Q, G = 4001, 40
  relevant = np.arange(G) < rng.choice([1, 2, 9], (Q, 1))
  similarities = rng.random((Q, G)).astype(np.float32)
  got = retrieval.retrieval_metrics(similarities, relevant)
  want = retrieval.chance(relevant.sum(axis=1), G)
  for name in NAMES:
    assert got[name] == pytest.approx(want[name], rel=0.08), name
  assert want["MedR"] == got["MedR"]


def test_chance_counts_every_subset():
  G, m, k = 7, 3, 2
  subsets = list(itertools.combinations(range(G), m))
  hit = np.mean([min(s) < k for s in subsets])
  mean = np.mean([1 + min(s) for s in subsets])
  got = retrieval.chance(m, G)
  assert got["R@1"] == pytest.approx(100 * m / G)
  assert got["MeanR"] == pytest.approx(mean)
  from_hit = ranks.hit_probability(0, G - m, m, k)
  assert float(from_hit) == pytest.approx(hit)


def embeddings(rng, *shape):
  x = rng.normal(size=shape)
  x /= np.linalg.norm(x, axis=-1, keepdims=True)
  return x.astype(np.float32)


def test_several_captions_a_video(monkeypatch):
  """One query per caption; a video is found by the best of its captions."""
  monkeypatch.setattr(ranks, "BLOCK", 2)
  rng = np.random.default_rng(2)
  text, video = embeddings(rng, 9, 4), embeddings(rng, 5, 4)
  owner = np.array([0, 0, 0, 1, 1, 3, 4, 4, 4])  # video 2 has no caption
  similarities = text @ video.T
  t2v = [
    1 + sum(row > row[v]) for row, v in zip(similarities, owner, strict=True)
  ]
  v2t = []
  for v in (0, 1, 3, 4):
    best = similarities[owner == v, v].max()
    v2t.append(1 + sum(similarities[owner != v, v] > best))
  got = retrieval.text_video_metrics(text, video, owner)
  for name, rank in (("t2v", np.array(t2v)), ("v2t", np.array(v2t))):
    for k in (1, 5):
      want = 100 * np.mean(rank <= k)
      assert got[f"{name}_R@{k}"] == pytest.approx(want)
    assert got[f"{name}_MedR"] == np.median(rank)
    assert got[f"{name}_MeanR"] == pytest.approx(rank.mean())
  chance = retrieval.text_video_chance(owner, 5)
  assert list(chance) == list(got)
  assert chance["t2v_R@1"] == pytest.approx(20)
  assert chance["v2t_R@1"] == pytest.approx(100 * 9 / 9 / 4)


@pytest.mark.parametrize("size", [37, 600])
def test_a_collapsed_encoder_is_exactly_at_chance(size):
  rng = np.random.default_rng(3)
  same = np.repeat(embeddings(rng, 1, 33), size, axis=0)
  owner = np.arange(size)
  got = retrieval.text_video_metrics(same, same[::-1].copy(), owner)
  assert got == pytest.approx(retrieval.text_video_chance(owner, size))


def test_dual_softmax_is_the_product_of_both_softmaxes():
  rng = np.random.default_rng(4)
  similarities = rng.normal(size=(4, 6)).astype(np.float32)
  e = np.exp(similarities.astype(np.float64) / 0.5)
  want = (e / e.sum(1, keepdims=True)) * (e / e.sum(0, keepdims=True))
  got = retrieval.dual_softmax(similarities, 0.5)
  assert got.dtype == np.float32
  np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)


def test_dual_softmax_demotes_a_hub():
  """Video 0 is near all texts; only with all queries seen is it unmasked."""
  similarities = np.array([[9, 0, 0], [9, 8, 0], [9, 0, 8]], np.float32)
  text, video = similarities, np.eye(3, dtype=np.float32)
  plain = retrieval.text_video_metrics(text, video, np.arange(3))
  dual = retrieval.text_video_metrics(
    text, video, np.arange(3), dual_softmax_temperature=1.0
  )
  assert plain["t2v_R@1"] == pytest.approx(100 / 3)
  assert dual["t2v_R@1"] == pytest.approx(100)


def test_class_retrieval_is_any_of_the_top_k():
  rng = np.random.default_rng(5)
  test, train = rng.normal(size=(30, 4)), rng.normal(size=(50, 4)) + 3
  names = np.array(["a", "b", "c"])
  test_labels, train_labels = names[rng.integers(0, 3, (30,))], None
  train_labels = names[rng.integers(0, 3, (50,))]
  got = retrieval.class_retrieval_metrics(
    test, test_labels, train, train_labels, ks=(1, 5)
  )
  a, b = test - test.mean(0), train - train.mean(0)
  a /= np.linalg.norm(a, axis=1, keepdims=True)
  b /= np.linalg.norm(b, axis=1, keepdims=True)
  for k in (1, 5):
    top = np.argsort(-(a @ b.T), axis=1)[:, :k]
    want = np.mean((train_labels[top] == test_labels[:, None]).any(1))
    assert got["metrics"][f"R@{k}"] == pytest.approx(100 * want)
  share = [np.mean(train_labels == label) for label in test_labels]
  assert got["chance"]["R@1"] == pytest.approx(100 * np.mean(share))
  assert got["chance"]["R@5"] > got["chance"]["R@1"]
  assert got["queries_without_class"] == 0
  plain = retrieval.class_retrieval_metrics(
    test, test_labels, train, train_labels, center=False, ks=(1, 5)
  )
  assert plain["metrics"] != got["metrics"]


def test_a_class_that_the_gallery_lacks_counts_as_wrong():
  features = np.eye(3)
  got = retrieval.class_retrieval_metrics(
    features, ["a", "b", "z"], features, ["a", "b", "b"], center=False, ks=(1,)
  )
  assert got["metrics"]["R@1"] == pytest.approx(200 / 3)
  assert got["chance"]["R@1"] == pytest.approx(100 / 3)
  assert got["queries_without_class"] == 1
  with pytest.raises(UserError, match="3 query features but 2 labels"):
    retrieval.class_retrieval_metrics(features, ["a", "b"], features, "abc")


@pytest.mark.parametrize("levels", [3, 1000])
def test_ndcg_is_that_of_scikit_learn_ties_and_all(levels):
  rng = np.random.default_rng(levels)
  similarities = rng.integers(levels, size=(20, 40)).astype(np.float32)
  relevant = rng.random((20, 40)) < 0.1
  relevant[:, 0] = True
  for k in (1, 10, 60):
    expected = [
      ndcg_score(row[None].astype(int), scores[None], k=k)
      for row, scores in zip(relevant, similarities, strict=True)
    ]
    got = ranks.ndcg(similarities, relevant, k)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_chance_of_ndcg_is_that_of_constant_similarities():
  owner = np.repeat(np.arange(15), [1, 2, 3] * 5)
  same = np.ones((len(owner), 4), np.float32), np.ones((15, 4), np.float32)
  got = retrieval.text_video_metrics(*same, owner)
  chance = retrieval.text_video_chance(owner, 15)
  for name in ("t2v_nDCG@10", "v2t_nDCG@10"):
    assert got[name] == pytest.approx(chance[name])
