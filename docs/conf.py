"""Configuration of the documentation; ``make docs`` builds it."""

from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import fastsmc

project = "fastsmc"
version = release = fastsmc.__version__
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]

html_theme = "furo"
html_title = f"fastsmc {release}"
html_show_sourcelink = html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
# what need not be there
autodoc_mock_imports = ["blackjax", "fastsmc._jax", "jax", "particles", "pymc", "pytensor", "stonesoup"]
autodoc_typehints = "none"  # docstrings say shapes and dtypes, which annotations do not
numpydoc_show_class_members = False
nitpick_ignore_regex = [("py:.*", r"(arviz|logging)\..*")]  # other people's names


class Public(SphinxDirective):
    """Every public name that ``fastsmc`` takes from some of its modules, documented by its docstring.

    Options are those of autodoc, for the classes among them.
    """

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict] = {"members": directives.unchanged, "exclude-members": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """See `SphinxDirective`."""
        lines = []
        for name, module in fastsmc._PUBLIC.items():
            if module in self.arguments[0].split():
                is_class = isinstance(getattr(fastsmc, name), type)
                lines += [f".. {'autoclass' if is_class else 'autofunction'}:: fastsmc.{name}"]
                lines += [f"   :{option}: {value or ''}" for option, value in self.options.items() if is_class]
                lines += [""]
        return self.parse_text_to_nodes("\n".join(lines))


def by_its_end(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Node) -> nodes.Node | None:
    """The target of a name as modules write it: a public one, or the one that ends like that.

    Attributes that their class describes are found there.
    """
    if node.get("refdomain") != "py":
        return None
    python, name = env.domains.python_domain, node["reftarget"]
    for target in (f"fastsmc.{name}", name, name.rpartition(".")[0]):
        node["refspecific"] = target not in python.objects
        if found := python.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, text):
            return found
    return None


def check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page documents, which fails the build."""
    known = env.domains.python_domain.objects
    for name, module in fastsmc._PUBLIC.items():
        if f"fastsmc.{name}" not in known:
            logging.getLogger(__name__).warning("no page of docs/api has fastsmc.%s of fastsmc/%s.py", name, module)


def setup(app: Sphinx) -> None:
    """See Sphinx."""
    app.add_directive("public", Public)
    app.connect("missing-reference", by_its_end)
    app.connect("env-check-consistency", check_names)
