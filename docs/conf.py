"""Settings of Sphinx, which builds the pages: python -m sphinx -W docs OUT.

Docstrings are in Google's style and plain enough to be read as they are; the
functions below tell Sphinx what it would not see in them.
"""

import re

from docutils import nodes
from sphinx.domains import python

from acmix_jax.version import __version__

project = 'acmix_jax'
version = release = __version__
exclude_patterns = ['_build']
extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.autosummary',
  'sphinx.ext.napoleon',
]
# Quotes and dashes are those of programs.
smartquotes = False
# Headings that a link may name, as on GitHub.
myst_heading_anchors = 3

html_theme = 'pydata_sphinx_theme'
html_title = f'acmix_jax {__version__}'
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
  'header_links_before_dropdown': 7,
  'navbar_align': 'left',
}
# Pages of no section need no list of its pages.
html_sidebars = {'*': []}
html_static_path = ['static']
html_css_files = ['pages.css']

templates_path = ['templates']
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_default_options = {
  'members': True,
  'special-members': '__call__',
  # Of flax; and dtypes, which are classes: as the default of a field one is
  # taken for a member.
  'exclude-members': 'setup, replace, dtype, param_dtype',
}
autoclass_content = 'both'
autodoc_typehints = 'description'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Names of types, which Sphinx writes out.
_TYPES = {
  'str | type[Any] | dtype | SupportsDType': 'DTypeLike',
  'Array | ndarray | bool | number | bool | int | float | complex': 'ArrayLike',
  "Key[Array, ''] | UInt32[Array, '2'] | UInt32[Array, '4']": 'PRNGKeyArray',
  'Initializer | Callable[[...], Any]': 'Initializer',
}
_SECTION = re.compile(r'(Args|Attributes|Raises|Returns|Yields):')
_CODE = re.compile('(`[^`]*`)')


def _with_literals(app, kind, name, obj, options, lines):
  """Marks indented lines, code or formulas, and the signs that are meant."""
  marked = []
  in_sections = False
  for i, line in enumerate(lines):
    in_sections |= bool(_SECTION.fullmatch(line))
    indented = line.startswith(' ') and not in_sections
    if indented and not lines[i - 1]:
      marked += ['::', '']
    marked.append(line if indented else _escaped(line))
  lines[:] = marked


def _escaped(line):
  # Stars before the names of arguments are Sphinx's own.
  parts = _CODE.split(line)
  parts[::2] = [
    re.sub(r'(?<!^)(?<! {4})(\*|\||(?<=\w)_(?!\w))', r'\\\1', part)
    for part in parts[::2]
  ]
  return ''.join(parts)


def _with_short_types(app, kind, name, obj, options, lines):
  for i, line in enumerate(lines):
    if line.startswith(':vartype'):
      lines[i] = _short(line).replace('*', r'\*')
  lines[:] = [x for x in lines if not x.startswith('Create new instance of ')]


def _short(text):
  """Types without the modules of other packages; ours become links."""
  text = re.sub(r'~?\b(?!acmix_jax\.)([a-z_]\w*\.)+(?=\w)', '', text)
  text = re.sub(r'~?\bacmix_jax\.', '~acmix_jax.', text)
  for long, short in _TYPES.items():
    text = text.replace(long, short)
  return text


def _shorten_types(app, domain, kind, content):
  """Names types of arguments; of a class only of those that it documents."""
  names = content.parent[0]
  if kind == 'property':
    for text in list(names.findall(nodes.Text)):
      text.parent.replace(text, nodes.Text(_short(text)))
  types = app.env.current_document.autodoc_annotations.get(
    f'{names.get("module")}.{names.get("fullname")}', {}
  )
  documented = {x.astext() for x in content.findall(nodes.field_name)}
  for name, text in list(types.items()):
    types[name] = _short(text)
    if kind == 'class' and f'param {name}' not in documented:
      del types[name]


def _skip(app, kind, name, obj, skip, options):
  """Leaves out the fields of named tuples, which their class documents."""
  return skip or (obj.__doc__ or '').startswith('Alias for field number')


def _shorten_defaults(app, kind, name, obj, options, signature, returns):
  """Leaves out Linen's own fields and the addresses of objects."""
  if signature:
    signature = re.sub(r'(, )?\bparent[=:].*', ')', signature)
    signature = re.sub(r"<class '[\w.]*?(\w+)'>", r'\1', signature)
    signature = re.sub(r'<function .*?>(?=[,)])', '...', signature)
  return signature, returns


def _draw_dashes(app, document):
  """Dashes of Sphinx's own, between a name and its description."""
  for text in list(document.findall(nodes.Text)):
    if text == ' -- ':
      text.parent.replace(text, nodes.Text(' \N{EN DASH} '))


def setup(app):
  """Connects the functions above."""
  for field in python.PyObject.doc_field_types:
    if field.name == 'variable':
      field.label = 'Attributes'
  # Before and after napoleon, and before the types are written.
  app.connect('autodoc-process-docstring', _with_literals, priority=400)
  app.connect('autodoc-process-docstring', _with_short_types, priority=600)
  app.connect('object-description-transform', _shorten_types, priority=400)
  app.connect('autodoc-process-signature', _shorten_defaults)
  app.connect('autodoc-skip-member', _skip)
  app.connect('doctree-read', _draw_dashes)
  return {'parallel_read_safe': True}
