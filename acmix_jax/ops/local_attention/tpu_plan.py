"""How the kernels for TPU cut a local attention into programs."""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Float32

from acmix_jax.ops import kernels
from acmix_jax.ops.local_attention import geometry

# Queries of a product.
_QUERIES = 128


class Plan(NamedTuple):
  """How two maps are cut into programs; all is static.

  A program takes a block of rows: bands of queries, one after the other, and
  the keys that they reach. A map of few rows is one block.

  Attributes:
    problem: Sizes of the maps and the window.
    band: Rows and columns of the queries of a band.
    turns: Bands of a block, along its rows.
    query_strides: Pixels from a query to the next in the map that a program
      is given: 1 if it holds the queries alone.
  """

  problem: geometry.Problem
  band: tuple[int, int]
  turns: int
  query_strides: int = 1

  @property
  def channels(self) -> int:
    """Channels of all heads."""
    return self.problem.heads * self.problem.depth

  @property
  def bands(self) -> tuple[int, int]:
    """Bands along the rows and the columns of the queries."""
    rows, columns = map(pl.cdiv, self.problem.queries, self.band)
    return rows, columns

  @property
  def span(self) -> tuple[int, int]:
    """Rows and columns of the keys of a band."""
    rows, columns = (
      (size - 1) * self.problem.strides + self.problem.extent
      for size in self.band
    )
    if self.bands[1] == 1:
      columns = self.problem.keys[1]
    return min(self.problem.keys[0], rows), kernels.round_up(
      columns, kernels.ALIGN
    )

  @property
  def margin(self) -> int:
    """Empty columns before the map in a frame of keys.

    The first key of each band is then at a multiple of 8.
    """
    return self.problem.reach if self.bands[1] > 1 else 0

  @property
  def blocks(self) -> int:
    """Blocks of a map."""
    return pl.cdiv(self.bands[0], self.turns)

  @property
  def lag(self) -> int:
    """Blocks by which the gradients of keys come after those of queries.

    The queries of two blocks see the keys between them.
    """
    return int(self.blocks > 1)

  @property
  def rows(self) -> tuple[int, int]:
    """Rows of queries and of keys that belong to a block."""
    queries = self.turns * self.band[0]
    return queries, queries * self.problem.strides

  @property
  def fetched(self) -> int:
    """Rows of keys that the queries of a block reach."""
    if not self.lag:
      return self.problem.keys[0]
    reached = self.rows[1] - self.problem.strides + self.problem.extent
    return min(reached, self.problem.keys[0])

  def first_fetched(self, block):
    """The first of them."""
    first = block * self.rows[1] - self.problem.reach
    return first.clip(0, self.problem.keys[0] - self.fetched)

  @property
  def summed(self) -> int:
    """Rows of keys whose gradients are not complete before a block is."""
    return (1 + self.lag) * self.rows[1] + self.lag * self.span[0]

  def first_summed(self, block):
    """The first of them."""
    return (block - self.lag) * self.rows[1]

  @property
  def output_frame(self) -> tuple[int, int, int, int]:
    """Shape of a frame of outputs, or of their gradients."""
    columns = self.bands[1] * self.band[1]
    return kernels.frame(self.rows[0], columns, self.channels)

  @property
  def query_frame(self) -> tuple[int, int, int, int]:
    """Shape of a frame of queries, or of their gradients."""
    _, rows, columns, _ = self.output_frame
    strides = self.query_strides
    return kernels.frame(rows * strides, columns * strides, self.channels)

  def key_frame(self, rows: int) -> tuple[int, int, int, int]:
    """Shape of a frame of so many rows of keys, or of their gradients."""
    last = (self.bands[1] - 1) * self.band[1] * self.problem.strides
    columns = max(last + self.span[1], self.margin + self.problem.keys[1])
    return kernels.frame(rows, columns, self.channels)

  @property
  def groups(self) -> list[slice]:
    """Lanes of whole heads that one product takes: a register, if possible."""
    return kernels.groups_of_heads(self.problem.heads, self.problem.depth)

  def first_keys(self, band, axis: int):
    """First row (axis 0) or column (1) of keys of the band of that number.

    The column may be negative: it is then in the margin.
    """
    first = band * (self.band[axis] * self.problem.strides)
    if axis:
      return first - self.margin
    last = self.problem.keys[0] - self.span[0]
    return (first - self.problem.reach).clip(0, last)

  def count_tables(self) -> list[jax.Array]:
    """Log counts by row and by column [bands, band, span rows * columns]."""
    problem = self.problem
    key = jnp.arange(math.prod(self.span), dtype=jnp.int32)
    lines = key // self.span[1], key % self.span[1]
    tables = []
    for axis, line in enumerate(lines):
      bands = jnp.arange(self.bands[axis], dtype=jnp.int32)[:, None, None]
      query = jnp.arange(self.band[axis], dtype=jnp.int32)[None, :, None]
      query += bands * self.band[axis]
      # Queries beyond the map are the last one again, so that each has a key.
      query = query.clip(max=problem.queries[axis] - 1) * problem.strides
      key = self.first_keys(bands, axis) + line[None, None]
      size = problem.keys[axis]
      tables.append(geometry.log_counts(query, key, size, problem))
    return tables

  def offsets(self) -> Float32[np.ndarray, '2 n']:
    """Rows and columns from the middle of a band's keys to each of them."""
    lines = [np.arange(size) - geometry.middle(size) for size in self.span]
    places = np.stack(np.meshgrid(*lines, indexing='ij'))
    return places.reshape(2, -1).astype(np.float32)

  def query_spec(self) -> pl.BlockSpec:
    """The queries of a block; of the last one, where only keys are left."""
    return pl.BlockSpec(
      (1, self.rows[0], self.problem.queries[1], self.channels),
      lambda b, i: (b, jnp.minimum(i, self.blocks - 1), 0, 0),
    )

  def key_spec(self) -> pl.BlockSpec:
    """The keys that the queries of a block reach."""
    shape = 1, self.fetched, self.problem.keys[1], self.channels
    return pl.BlockSpec(
      tuple(map(pl.Element, shape)),
      lambda b, i: (b, self.first_fetched(i), 0, 0),
    )

  def key_gradient_spec(self) -> pl.BlockSpec:
    """The keys whose gradients are complete after a block."""
    return pl.BlockSpec(
      (1, self.rows[1], self.problem.keys[1], self.channels),
      lambda b, i: (b, jnp.maximum(i - self.lag, 0), 0, 0),
    )

  @property
  def frame_bytes(self) -> int:
    """What all frames of the backward kernel take."""
    keys = [self.key_frame(rows) for rows in (self.fetched, self.summed)]
    shapes = [self.query_frame, *keys]
    return 4 * math.prod(self.output_frame) + 8 * sum(map(math.prod, shapes))

  @property
  def vmem_bytes(self) -> int:
    """What the backward kernel holds at once, up to a few percent."""
    itemsize = self.problem.dtypes[1].itemsize

    def row(columns):
      return kernels.map_bytes((1, columns), self.channels, itemsize)

    # All are fetched and stored while others compute.
    fetched = 3 * self.rows[0] * row(self.problem.queries[1])
    fetched += 2 * (self.fetched + self.rows[1]) * row(self.problem.keys[1])
    return 2 * fetched + self.frame_bytes + self.logit_bytes

  @property
  def logit_bytes(self) -> int:
    """What the logits and their gradients take."""
    heads = self.groups[0].stop // self.problem.depth
    return 6 * heads * math.prod(self.band + self.span) * 4

  def cost(self, batch: int, *, queries: int, keys: int, sums: int, products):
    """Flops and bytes of so many reads, writes and products.

    Args:
      batch: Number of images.
      queries: Maps of queries that are read or written.
      keys: Maps of keys that are read.
      sums: Maps of keys that are written.
      products: Products of queries and keys.
    """
    problem, itemsize = self.problem, self.problem.dtypes[1].itemsize
    pairs = batch * math.prod(self.bands + self.band + self.span)
    rows = self.blocks * self.fetched, problem.keys[0]
    moved = queries * kernels.moved_bytes(
      problem.queries, self.channels, itemsize
    )
    for times, height in zip((keys, sums), rows, strict=True):
      size = height, problem.keys[1]
      moved += times * kernels.moved_bytes(size, self.channels, itemsize)
    group = self.groups[0].stop
    return pl.CostEstimate(
      flops=2 * products * pairs * problem.heads * group,
      transcendentals=pairs * problem.heads,
      bytes_accessed=batch * moved,
    )


def make_plan(problem: geometry.Problem) -> Plan:
  """The plan of the least work that the chip has room for."""
  return _make_plan(problem, kernels.vmem_budget(), _QUERIES)


@functools.cache  # Every layer of a network asks several times.
def _make_plan(problem, budget, queries):
  plans = (_cut(problem, band, budget) for band in _bands(problem, queries))
  best = next(plans)
  plans = itertools.chain([best], plans)
  return next((plan for plan in plans if plan.vmem_bytes <= budget), best)


def _bands(problem: geometry.Problem, most: int) -> list[tuple[int, int]]:
  """Rows and columns of a band of at most so many queries.

  Those of the least work come first.
  """
  height, width = problem.queries
  whole = kernels.round_up(width, kernels.ALIGN)
  bands = set()
  for columns in range(kernels.ALIGN, min(whole, most) + 1, kernels.ALIGN):
    for rows in range(1, min(height, most // columns) + 1):
      # Bands of as many rows each.
      bands.add((pl.cdiv(height, pl.cdiv(height, rows)), columns))
  return sorted(bands, key=lambda band: _work(Plan(problem, band, 1)))


def _work(plan: Plan) -> tuple[int, int]:
  """What the matrix unit is busy with; bands, each of which has to wait."""
  bands = math.prod(plan.bands)
  heads = plan.groups[0].stop // plan.problem.depth
  queries = max(heads * math.prod(plan.band), kernels.LANES)
  keys = kernels.round_up(math.prod(plan.span), kernels.LANES)
  return bands * queries * keys, bands


def _cut(problem: geometry.Problem, band: tuple[int, int], budget: int) -> Plan:
  """The plan of the fewest blocks that the chip has room for."""
  plan = Plan(problem, band, 1)
  bands = plan.bands[0]
  plan = plan._replace(turns=bands)
  for blocks in range(2, bands + 1):
    if plan.vmem_bytes <= budget:
      break
    smaller = plan._replace(turns=pl.cdiv(bands, blocks))
    # Keys that a block begins with are complete after the next one.
    if smaller.rows[1] < plan.span[0]:
      break
    plan = smaller
  return plan
