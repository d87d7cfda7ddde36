"""The headline numbers of a run, for the page and for the terminal."""

HEADLINES = (
  ("retrieval", [f"t2v_{m}" for m in ("R@1", "R@5", "R@10", "MedR")]),
  ("retrieval", [f"v2t_{m}" for m in ("R@1", "R@5", "R@10", "MedR")]),
  ("video_retrieval", ["R@1", "R@5"]),
  ("recognition", ["top1"]),
  ("calibration", ["auc", "noise_rate_estimate"]),
)


def summary(run: dict) -> str:
  """The headline numbers as a table for the terminal, chance beside each.

  Args:
    run: see page.render.
  """
  lines = [f"\n{'':36}{'result':>10}{'chance':>13}"]
  for task, names in HEADLINES:
    if run[task] is None:
      continue
    metrics, chance = run[task]["metrics"], run[task]["chance"]
    for name in (name for name in names if name in metrics):
      beside = f"{chance[name]:.2f}" if name in chance else ""
      if name == "noise_rate_estimate" and "noise_rate_true" in metrics:
        beside = f"(true {metrics['noise_rate_true']:.2f})"
      label = f"{task} {name}"
      lines.append(f"{label:<36}{metrics[name]:>10.2f}{beside:>13}")
  found = wrong_captions(run["calibration"])
  return "\n".join([*lines, "", found] if found else lines)


def wrong_captions(result: dict | None) -> str:
  """How many known wrong captions were found; "" where none is known.

  Args:
    result: of the task calibration; an older evaluate did not count them.
  """
  if result is None or "wrong_captions" not in result:
    return ""
  counts = result["wrong_captions"]
  wrong, flagged, found = (counts[k] for k in ("wrong", "flagged", "found"))
  if not wrong:
    return ""
  precision = f" with precision {found / flagged:.2f}" if flagged else ""
  return (
    f"your {wrong:,} wrong captions: found {found:,}{precision} (pairs with a"
    " confidence below 0.5)"
  )


CARDS = (
  ("retrieval", "t2v_R@1", "Text → video R@1", "%"),
  ("retrieval", "v2t_R@1", "Video → text R@1", "%"),
  ("retrieval", "t2v_MedR", "Text → video median rank", ""),
  ("video_retrieval", "R@1", "Video → video R@1", "%"),
  ("recognition", "top1", "Action recognition top-1", "%"),
  ("calibration", "auc", "AUC, matched or mismatched", "auc"),
)


def cards(run: dict) -> list[dict]:
  """The headline numbers of the page, each with its value by chance.

  Args:
    run: see page.render.
  """
  made = []
  for task, metric, label, unit in CARDS:
    result = run[task]
    if result is None or metric not in result["metrics"]:
      continue
    value, chance = result["metrics"][metric], result["chance"][metric]
    scale = {"%": 1, "auc": 100, "": None}[unit]
    digits = ".3f" if unit == "auc" else ".1f"
    made.append(
      {
        "label": label,
        "value": format(value, digits),
        "chance": format(chance, digits),
        "unit": " %" if unit == "%" else "",
        "bar": scale and (scale * value, scale * chance),
      }
    )
  return made
