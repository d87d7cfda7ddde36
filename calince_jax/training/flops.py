"""Floating-point operations of a traced function, from its jaxpr.

XLA's own count takes the body of a loop once; here it counts as often as the
loop is run. Only products are counted (`dot_general`, convolutions): in these
models everything else is a per cent or two.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(function: Callable, *arguments: Any) -> int:
  """Operations (a multiplication and an addition are two) of one call.

  Args:
    function: to be traced.
    *arguments: arrays or ShapeDtypeStructs.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    x = equation.invars[0].aval
    return (
      2
      * equation.outvars[0].aval.size
      * math.prod(x.shape[axis] for axis in contracted)
    )
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval
    features = params["dimension_numbers"].rhs_spec[0]
    return (
      2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[features]
    )
  times = params["length"] if name == "scan" else 1
  if name == "shard_map":
    times = params["mesh"].size
  inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
  # Of the branches of a `cond` one is run; they are alike in these programs.
  return times * (max(inner, default=0) if name == "cond" else sum(inner))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs among the parameters of an equation."""
  for value in params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(one, "eqns"):
        yield one
      elif hasattr(one, "jaxpr") and hasattr(one.jaxpr, "eqns"):
        yield one.jaxpr
