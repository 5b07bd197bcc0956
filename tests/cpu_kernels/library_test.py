"""How the library of the kernels is built, kept, found and refused."""

import logging
import os
import stat
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import pytest

import acmix_jax
from acmix_jax import cpu_kernels
from acmix_jax.cpu_kernels import library

# A compiler whose libraries say so, and which counts its runs.
_COMPILER = (
  'echo run >> "$(dirname "$0")/runs"; for last; do :; done; '
  'case "$last" in --version) ;; *) echo library > "$last" ;; esac'
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
  """The folder of libraries, beneath `tmp_path`; nothing is in it."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
  monkeypatch.delenv('ACMIX_JAX_CPU_KERNELS', raising=False)
  monkeypatch.setattr(cpu_kernels, '_reason', cpu_kernels._reason)
  cpu_kernels.enable.cache_clear()
  (tmp_path / 'tmp').mkdir()
  yield tmp_path / 'acmix_jax'
  assert not list((tmp_path / 'tmp').iterdir())
  cpu_kernels.enable.cache_clear()


@pytest.fixture
def compiler(monkeypatch, tmp_path, cache):
  """Makes CXX name a script."""

  def write(script=_COMPILER):
    path = tmp_path / 'compiler'
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv('CXX', str(path))
    return path

  return write


def build():
  """The text of the library."""
  with library.built() as path:
    return path.read_text()


@pytest.mark.parametrize(
  ('script', 'reason'),
  [
    ('echo "no such header" >&2; exit 1', 'no such header'),
    (None, 'No such file'),
    ('"', 'No closing quotation'),
  ],
)
def test_a_compiler_that_fails_is_said_why(
  monkeypatch, tmp_path, compiler, caplog, script, reason
):
  caplog.set_level(logging.INFO)
  if script and script != '"':
    compiler(script)
  else:
    monkeypatch.setenv('CXX', script or str(tmp_path / 'compiler'))
  assert not cpu_kernels.enable()
  assert reason in cpu_kernels.why_not()
  assert reason in caplog.text


def test_a_compiler_that_hangs_is_ended_with_what_it_started(
  monkeypatch, tmp_path, compiler, caplog
):
  caplog.set_level(logging.INFO)
  compiler('sleep 60 & echo $! > "$(dirname "$0")/child"; wait')
  monkeypatch.setattr(library, '_TIMEOUT_SECONDS', 0.5)
  start = time.monotonic()
  assert not cpu_kernels.enable()
  assert time.monotonic() - start < 30
  assert 'timed out after 0.5 seconds' in caplog.text
  child = int((tmp_path / 'child').read_text())
  for _ in range(100):
    if not _runs(child):
      return
    time.sleep(0.1)
  pytest.fail('The child of the compiler goes on.')


def _runs(process):
  try:
    with open(f'/proc/{process}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def test_the_library_is_compiled_once(monkeypatch, cache, compiler):
  script = compiler()
  assert build() == build() == 'library\n'
  # It was asked for its version each time, and compiled at the first.
  assert (script.parent / 'runs').read_text().count('run') == 3
  assert sorted(x.suffix for x in cache.iterdir()) == ['.sha256', '.so']
  assert stat.S_IMODE(cache.stat().st_mode) == 0o700
  monkeypatch.setenv('CXX', f'{script} -mno-avx')
  build()
  assert len(list(cache.glob('*.so'))) == 2


@pytest.mark.parametrize('suffix', ['.so', '.sha256'])
def test_a_library_that_was_cut_short_is_built_again(cache, compiler, suffix):
  compiler()
  build()
  [path] = cache.glob(f'*{suffix}')
  os.truncate(path, 3)
  assert build() == 'library\n'


def test_a_cache_that_cannot_be_written_is_done_without(
  monkeypatch, tmp_path, compiler
):
  compiler()
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  with library.built() as path:
    assert path.parent.parent == tmp_path / 'tmp'
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
  assert not path.exists()


@pytest.mark.parametrize('mode', [0o777, 0o770, 0o702])
def test_a_cache_that_others_can_write_is_refused(
  cache, compiler, caplog, mode
):
  compiler()
  cache.mkdir()
  cache.chmod(mode)
  assert build() == 'library\n'
  assert not list(cache.iterdir())
  assert f'Others can write {cache}' in caplog.text


def test_a_cache_of_another_user_is_refused(
  monkeypatch, cache, compiler, caplog
):
  compiler()
  monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 1)
  build()
  assert not list(cache.iterdir())
  assert f'Others can write {cache}' in caplog.text


def _trace_a_layer():
  layer = acmix_jax.ACmix(16, 1, kernel_att=3)
  x = jax.ShapeDtypeStruct((1, 5, 5, 3), jnp.float32)
  jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x)[0], x)


def test_nothing_is_compiled_unless_enabled(monkeypatch, cache):
  monkeypatch.setattr(subprocess, 'Popen', lambda *_, **__: pytest.fail())
  _trace_a_layer()
  assert not cpu_kernels.enabled()


def test_the_environment_forbids_the_kernels(monkeypatch, cache, caplog):
  caplog.set_level(logging.INFO)
  monkeypatch.setattr(subprocess, 'Popen', lambda *_, **__: pytest.fail())
  monkeypatch.setenv('ACMIX_JAX_CPU_KERNELS', '0')
  assert not cpu_kernels.enable()
  assert 'ACMIX_JAX_CPU_KERNELS=0 forbids them' in caplog.text


def test_the_environment_enables_the_kernels_once(compiler, monkeypatch):
  script = compiler('echo run >> "$(dirname "$0")/runs"; exit 1')
  monkeypatch.setenv('ACMIX_JAX_CPU_KERNELS', '1')
  _trace_a_layer()
  assert not cpu_kernels.enabled()
  assert (script.parent / 'runs').read_text().count('run') == 1
