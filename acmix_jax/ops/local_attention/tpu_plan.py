"""How the kernels for TPU cut a local attention into programs."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from acmix_jax.ops import kernels
from acmix_jax.ops.local_attention import geometry

# Queries of a product, and the widest map whose rows are not cut.
_QUERIES = 128
_UNCUT = 64
# A core has 16 (v2 to v4), 64 (v5p, v7) or 128 MiB (v5e, v6e).
VMEM = 56 * kernels.MIB


class Plan(NamedTuple):
  """How two maps are cut into programs; all is static.

  A program takes a block of rows: bands of queries, one after the other, and
  the keys that they reach. A map of few rows is one block.

  Attributes:
    problem: Sizes of the maps and the window.
    band: Rows and columns of the queries of a band.
    span: Rows and columns of the keys of a band.
    turns: Bands of a block, along its rows.
  """

  problem: geometry.Problem
  band: tuple[int, int]
  span: tuple[int, int]
  turns: int

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
  def columns(self) -> int:
    """Columns of a map of keys in whole registers."""
    return kernels.round_up(self.problem.keys[1], kernels.SUBLANES)

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
  def groups(self) -> list[slice]:
    """Lanes of whole heads that one product takes: a register, if possible."""
    return kernels.groups_of_heads(self.problem.heads, self.problem.depth)

  def first_keys(self, band, axis: int):
    """First row (axis 0) or column (1) of keys of the band of that number."""
    size = self.problem.keys[0], self.columns
    align = (1, kernels.SUBLANES)[axis]
    first = band * (self.band[axis] * self.problem.strides)
    first -= self.problem.reach
    return first.clip(0, size[axis] - self.span[axis]) & -align

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

  def query_spec(self) -> pl.BlockSpec:
    """The queries of a block; of the last one, where only keys are left."""
    columns = self.bands[1] * self.band[1]
    return pl.BlockSpec(
      (1, self.rows[0], columns, self.channels),
      lambda b, i: (b, jnp.minimum(i, self.blocks - 1), 0, 0),
    )

  def key_spec(self) -> pl.BlockSpec:
    """The keys that the queries of a block reach."""
    if not self.lag:
      shape = 1, self.fetched, self.columns, self.channels
      return pl.BlockSpec(shape, lambda b, i: (b, 0, 0, 0))
    missing = self.columns - self.problem.keys[1]
    shape = (
      pl.Element(1),
      pl.Element(self.fetched),
      pl.Element(self.columns, (0, missing)),
      pl.Element(self.channels),
    )
    return pl.BlockSpec(shape, lambda b, i: (b, self.first_fetched(i), 0, 0))

  def key_gradient_spec(self) -> pl.BlockSpec:
    """The keys whose gradients are complete after a block."""
    return pl.BlockSpec(
      (1, self.rows[1], self.columns, self.channels),
      lambda b, i: (b, jnp.maximum(i - self.lag, 0), 0, 0),
    )

  def sum_shape(self) -> Any:
    """Memory for the gradients of keys or values."""
    return pltpu.VMEM((self.summed, self.columns, self.channels), jnp.float32)

  @property
  def vmem_bytes(self) -> int:
    """What the backward kernel holds at once, up to a few percent."""
    itemsize = self.problem.dtypes[1].itemsize

    def row(columns, itemsize):
      return kernels.map_bytes((1, columns), self.channels, itemsize)

    # All are fetched and stored while others compute.
    fetched = 3 * self.rows[0] * row(self.bands[1] * self.band[1], itemsize)
    fetched += 2 * (self.fetched + self.rows[1]) * row(self.columns, itemsize)
    sums = 2 * self.summed * row(self.columns, 4)
    return 2 * fetched + sums + self.logit_bytes

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
  """The plan of the fewest blocks that the chip has room for."""
  columns = kernels.round_up(problem.queries[1], kernels.SUBLANES)
  if columns > _UNCUT:
    columns = _UNCUT // 2
  bands = pl.cdiv(problem.queries[0], max(1, _QUERIES // columns))
  rows = pl.cdiv(problem.queries[0], bands)
  # A cut starts up to so many columns before the first key it needs.
  extra = kernels.SUBLANES - 1
  needed = (columns - 1) * problem.strides + problem.extent + extra
  span = (
    min(problem.keys[0], (rows - 1) * problem.strides + problem.extent),
    kernels.round_up(min(problem.keys[1], needed), kernels.SUBLANES),
  )
  plan = Plan(problem, (rows, columns), span, bands)
  for blocks in range(1, bands + 1):
    smaller = plan._replace(turns=pl.cdiv(bands, blocks))
    # Keys that a block begins with are complete after the next one.
    if smaller.rows[1] < span[0] and blocks > 1:
      break
    plan = smaller
    if plan.vmem_bytes <= VMEM:
      break
  return plan
