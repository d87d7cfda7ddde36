import base64
import html.parser
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.hostile import settings
from calince_jax.errors import UserError
from calince_jax.evals import calibration_metrics, recognition, retrieval
from calince_jax.evals.report import headlines
from calince_jax.evals.report import page as report_page

EVIL = "<script>alert('x')</script>"


def thumbnail(kind="JPEG"):
  buffer = io.BytesIO()
  Image.new("RGB", (12, 4), (200, 40, 40)).save(buffer, kind)
  return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def results():
  """What evaluate would write, from random features."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(20, 6))
  x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  owner, protocol = np.arange(20), {"data": "toy", "checkpoint_step": 90}
  labels = 10 * ["a", "b"]
  hits = [
    {"id": f"c{i}", "text": f"hit {EVIL}", "similarity": 0.5 - i / 10}
    | {"right": i == 1, "thumbnail": thumbnail()}
    for i in range(2)
  ]
  score = rng.random(50)
  matched = (rng.random(50) < score).astype(np.int8)
  worst = [
    {"id": f"w{i}", "text": f"bad {i} {EVIL}", "confidence": 0.01 * i}
    | {"matched": (0, 1, None)[i % 3], "thumbnail": thumbnail()}
    for i in range(report_page.WORST_SHOWN + 3)
  ]
  return {
    "retrieval": {
      "protocol": protocol | {"tie_rule": retrieval.TIE_RULE},
      "metrics": retrieval.text_video_metrics(x, x, owner),
      "chance": retrieval.text_video_chance(owner, 20),
      "dual_softmax": retrieval.text_video_metrics(
        x, x, owner, dual_softmax_temperature=0.1
      ),
      "queries": [{"query": f"query {EVIL}", "rank": 2.0, "hits": hits}],
    },
    "video_retrieval": {"protocol": protocol}
    | retrieval.class_retrieval_metrics(x, labels, x, labels),
    "recognition": recognition.linear_probe(x, labels, x, labels, seed=0),
    "calibration": calibration_metrics.calibration_report(score, score, matched)
    | {"protocol": protocol, "worst": worst},
  }


def make_run(results, **changes):
  rows = [
    {"step": s, "contrastive": 4 - s / 50, "ln_N": 3.47, "noise_rate": None}
    for s in range(0, 100, 10)
  ]
  run = {"name": f"run {EVIL}", "workdir": "DIR", "date": "2024-01-02"}
  run |= {"config": {"batch_size": 32, "model": {"size": EVIL}}}
  return run | {"metrics": rows, "notes": []} | results | changes


class Page(html.parser.HTMLParser):
  """The tags with their attributes, the text, and whether all tags close."""

  VOID = ("meta", "img", "link", "br")

  def __init__(self, page):
    super().__init__()
    self.tags, self.open, self.text = [], [], ""
    self.feed(page)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_the_page_is_self_contained_and_nothing_in_it_runs(results):
  page = report_page.render(make_run(results))
  tags = Page(page).tags
  assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
  for tag, attributes in tags:
    assert not [name for name in attributes if name.startswith("on")]
    assert "href" not in attributes
    if tag == "img":
      assert attributes["src"].startswith("data:image/jpeg;base64,")
      assert attributes["alt"]
    if tag == "svg":
      assert attributes["aria-label"]
  assert "url(" not in page and "@import" not in page
  # The policy that makes a browser refuse the network and scripts.
  assert "default-src 'none'" in page


def test_results_of_an_older_evaluate_give_the_same_page(results):
  """They call the queries `gallery`, and a similarity `score`."""
  older = dict(results["retrieval"])
  queries = older.pop("queries")
  older["gallery"] = [
    query
    | {
      "hits": [
        {("score" if k == "similarity" else k): v for k, v in hit.items()}
        for hit in query["hits"]
      ]
    }
    for query in queries
  ]
  page = report_page.render(make_run(results))
  assert "0.400" in page
  assert report_page.render(make_run(results, retrieval=older)) == page


def test_text_from_data_stays_text(results):
  page = report_page.render(make_run(results))
  assert EVIL not in page
  text = Page(page).text
  for said in ("run ", "query ", "hit ", "bad 0 "):
    assert said + EVIL in text
  assert json.dumps(EVIL) in text  # in the configuration


def test_names_from_data_do_not_leave_their_attributes(results):
  breaks = '\'x" onload="alert(1)" y=\'>'

  def changed(value):
    """Every text of a result but the pictures, with `breaks` in it."""
    if isinstance(value, dict):
      return {
        name: x if name == "thumbnail" else changed(x)
        for name, x in value.items()
      }
    if isinstance(value, list):
      return [changed(x) for x in value]
    return value + breaks if isinstance(value, str) else value

  run = make_run(changed(results), name=breaks, workdir=breaks, date=breaks)
  run["config"] = {breaks: breaks}
  histogram = run["calibration"]["histogram"]
  histogram[breaks] = histogram["edges"][:-1]
  page = Page(report_page.render(run))
  assert breaks in page.text
  for tag, attributes in page.tags:
    assert not [name for name in attributes if name.startswith("on")], tag
  assert any(
    breaks in (value or "")
    for _, attributes in page.tags
    for value in attributes.values()
  )


def test_headline_numbers_stand_beside_chance(results):
  text = " ".join(Page(report_page.render(make_run(results))).text.split())
  assert "Text → video R@1 100.0 % chance 5.0 %" in text
  assert "Text → video median rank 1.0 chance 10.5" in text
  assert "chance 0.500" in text
  assert "ln N 3.47" in text
  assert retrieval.TIE_RULE in text
  assert "with dual softmax *" in text
  counts = results["calibration"]["wrong_captions"]
  wrong, flagged, found = (counts[k] for k in ("wrong", "flagged", "found"))
  line = f"{wrong} wrong captions: found {found} with precision"
  assert f"Your {line} {found / flagged:.2f}" in text
  assert f"your {line}" in headlines.summary(make_run(results))


def test_the_speed_of_the_last_row_is_shown(results):
  run = make_run(results)
  lost = ("start", "compile", "data", "checkpoint", "evaluation")
  run["metrics"][-1] |= {
    "examples_per_second": 2048.0,
    "examples_per_second_per_device": 8.0,
    "goodput": 0.75,
    **{f"lost_to_{name}": 0.05 for name in lost},
  }
  text = Page(report_page.render(run)).text
  assert "2,048.0 examples a second, 8.0 a device" in text
  assert "steps 75.0%, start 5.0%, compiling 5.0%" in text
  assert "utilisation" not in text  # of a device that is not known
  run["metrics"][-1]["mfu"] = 0.4125
  assert "41.2%" in Page(report_page.render(run)).text
  assert "a device" not in Page(report_page.render(make_run(results))).text


def test_right_clips_and_known_mismatches_are_marked_by_more_than_colour(
  results,
):
  page = Page(report_page.render(make_run(results)))
  assert page.text.count("✓ right") == 1
  worst = results["calibration"]["worst"]
  wrong = sum(item["matched"] == 0 for item in worst)
  known = sum(item["matched"] is not None for item in worst)
  assert page.text.count("✗ mismatched") == wrong
  assert page.text.count("✓ matched") == known - wrong
  text = " ".join(page.text.split())
  assert f"Of the {known} whose truth is known, {wrong} are mismatched" in text
  assert "3 more" in text


def test_what_is_absent_names_the_command_that_makes_it(results):
  nothing = dict.fromkeys(report_page.TASKS) | {"config": None}
  only_curves = report_page.render(make_run(results, **nothing))
  for task in report_page.TASKS:
    command = f"calince_jax.evaluate --workdir=DIR --task={task}"
    assert command in only_curves
    one_left_out = report_page.render(make_run(results, **{task: None}))
    assert one_left_out.count("Not evaluated yet") == 1
    assert command in one_left_out
  no_curves = report_page.render(make_run(results, metrics=[]))
  assert "calince_jax.train" in no_curves
  assert "calince_jax.train" not in only_curves


def test_a_classifier_and_prompts_are_shown_where_they_were_run(results):
  plain = report_page.render(make_run(results))
  assert "fine-tuned classifier" not in plain
  result = {key: results["recognition"][key] for key in ("metrics", "chance")}
  result |= {"protocol": {"task": "classification"}}
  more = {"classification": result, "zero_shot": result}
  shown = report_page.render(make_run(results, **more))
  assert "fine-tuned classifier" in shown and "by prompts" in shown


def test_without_known_truth_there_is_a_histogram_alone(results):
  confidence = np.linspace(0, 1, 30)
  unknown = calibration_metrics.calibration_report(
    confidence, confidence, np.full(30, -1)
  )
  unknown |= {"protocol": {}, "worst": []}
  page = report_page.render(make_run(results, calibration=unknown))
  assert "is not known here" in page
  assert "unknown, 30 pairs" in page
  assert "AUC, matched" not in page


@pytest.mark.parametrize(
  "bad",
  [
    'abc" onerror="alert(1)',
    base64.b64encode(b"not a picture").decode(),
    thumbnail("PNG"),
    thumbnail()[:-3],
    "",
    None,
  ],
)
def test_a_thumbnail_that_is_no_jpeg_is_refused(results, bad):
  item = dict(results["calibration"]["worst"][0], thumbnail=bad)
  broken = dict(results["calibration"], worst=[item])
  with pytest.raises(UserError, match="thumbnail of 'w0' is not a base64 JPEG"):
    report_page.render(make_run(results, calibration=broken))


def test_a_result_without_chance_is_refused(results):
  broken = {k: v for k, v in results["retrieval"].items() if k != "chance"}
  with pytest.raises(UserError, match=r"retrieval.json lacks \['chance'\]"):
    report_page.render(make_run(results, retrieval=broken))


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "calince_jax.report", *arguments],
    capture_output=True,
    text=True,
    timeout=120,
  )


def write_run(workdir, results):
  run = make_run(results)
  (workdir / "eval").mkdir(parents=True)
  for task in report_page.TASKS:
    (workdir / "eval" / f"{task}.json").write_text(json.dumps(run[task]))
  (workdir / "config.json").write_text(
    json.dumps({"format_version": 1, "config": run["config"]})
  )
  lines = [json.dumps(row) + "\n" for row in run["metrics"]]
  (workdir / "metrics.jsonl").write_text("".join(lines) + '{"step": 100, "lo')
  events = [
    {"step": 0, "event": "start"},
    {"step": 200, "event": "no_learning", "words": "nothing learned"},
    {"step": 290, "event": "took_off", "words": "learning has begun"},
    {"step": 310, "event": "calibration_began", "words": "began at step 310"},
  ]
  lines = [json.dumps(row) + "\n" for row in events]
  (workdir / "events.jsonl").write_text("".join(lines))


def test_the_command_writes_the_page_and_says_where(tmp_path, results):
  workdir = tmp_path / "my run"
  write_run(workdir, results)
  done = command(f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith(f"\nwrote {workdir / 'report.html'}\n")
  for name in ("t2v_R@1", "v2t_MedR", "calibration auc"):
    assert name in done.stdout
  page = (workdir / "report.html").read_text(encoding="utf-8")
  assert "<h1>my run</h1>" in page
  assert "<dt>batch_size</dt><dd>32</dd>" in page
  assert "90 steps" in page  # the unfinished last line is left out
  assert "learning has begun." in page and "began at step 310." in page
  assert "nothing learned" not in page  # it did in the end
  names = {path.name for path in workdir.iterdir()}
  written = {"config.json", "metrics.jsonl", "events.jsonl", "report.html"}
  assert names == {"eval", *written}
  elsewhere = tmp_path / "page.html"
  assert command(f"--workdir={workdir}", f"--out={elsewhere}").returncode == 0
  assert elsewhere.exists()


def test_whatever_a_result_says_there_is_a_page_or_one_message(
  tmp_path, results
):
  (tmp_path / "eval").mkdir()
  for task, result in results.items():
    path = tmp_path / "eval" / f"{task}.json"
    path.write_text(json.dumps(result, default=float))
  rows = [json.dumps({"step": s, "contrastive": 1 / s}) for s in range(1, 9)]
  (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, ""]))
  assert settings.attempt(settings.report, tmp_path) == ""
  rng = np.random.default_rng(0)
  said = []
  for path in (*tmp_path.glob("eval/*.json"), tmp_path / "metrics.jsonl"):
    good = path.read_bytes()
    for i in range(40):
      first, *others = good.split(b"\n") if path.suffix == ".jsonl" else [good]
      first = settings.broken_json(first, i, rng)
      path.write_bytes(b"\n".join([first, *others]))
      said.append(settings.attempt(settings.report, tmp_path))
    path.write_bytes(good)
  assert [words for words in said if settings.is_fault(words)] == []
  assert 10 < said.count("") < 190


def test_the_command_speaks_to_the_person(tmp_path, results):
  for arguments, message in (
    ([], "Exactly one of (workdir, data)"),
    ([f"--workdir={tmp_path}"], "is it the --workdir of a training run?"),
  ):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
  write_run(tmp_path / "run", results)
  (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n')
  done = command(f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert "metrics.jsonl, line 2 is damaged: it is not JSON" in done.stderr
  assert not (tmp_path / "run" / "report.html").exists()


def test_metrics_need_no_jax_and_a_model_no_tensorflow():
  code = (
    "import sys, calince_jax.report\n"
    "from calince_jax.evals import calibration_metrics, recognition\n"
    "from calince_jax.evals import retrieval\n"
    "loaded = [m for m in ('jax', 'tensorflow') if m in sys.modules]\n"
    "from calince_jax.inference import exported, from_run, model_card\n"
    "print(loaded + [m for m in ('tensorflow',) if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
  )
  assert done.stdout == "[]\n", done.stderr
