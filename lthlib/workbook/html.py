"""Notebook to HTML that shows everything offline: no scripts, no links to load, formulas as MathML."""

import html
import re
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from lthlib.store import write_text

WIDGET = "application/vnd.jupyter.widget-view+json"

# nbconvert's own page loads MathJax, RequireJS and the widget manager from the network.
_TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
/* Browsers heed these attributes of MathML only where a style asks for it, and stretch braces only in a math font. */
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", math; }
math [mathvariant^="bold"] { font-weight: bold; }
mtd[columnalign="left"] { text-align: left; }
mtd[columnalign="right"] { text-align: right; text-align: -webkit-right; }
math[display="block"] { margin: 0.8em 0; overflow-x: auto; }
main { max-width: 62em; margin: 0 auto; }
.jp-InputArea-editor pre { white-space: pre-wrap; }
</style>
{%- endblock -%}
{%- block body_header -%}{{ super() }}
<p class="jp-RenderedHTMLCommon"><a href="../index.html">All notebooks of this run</a></p>{%- endblock -%}
{%- block data_latex scoped -%}<div class="jp-RenderedLatex jp-OutputArea-output">
{{- output.data['text/latex'] | latex2html -}}</div>{%- endblock -%}
"""

# What latex2mathml does not know, said in what it does.
_SAME = (
    (re.compile(r"\\(begin|end)\{aligned\}"), r"\\\1{align*}"),
    (re.compile(r"\\arg(?![a-zA-Z])"), r"\\operatorname{arg}"),
)


def write_html(target: Path, executed: Path, images: Path) -> None:
    """Writes the executed notebook as one HTML file; images beside the notebook's source, in `images`, are embedded."""
    write_text(target, to_html(nbformat.read(executed, as_version=4), executed.stem, images))


def to_html(notebook: NotebookNode, name: str, images: Path) -> str:
    """One HTML page that needs nothing else: figures embedded, formulas as MathML, widgets replaced by a note.

    A slider cannot work in a static page; the notebooks show a static figure before each.
    """
    page, _ = _exporter().from_notebook_node(_static(notebook), {"metadata": {"name": name, "path": str(images)}})
    return page


def mathml(latex: str, display: str = "inline") -> str:
    """A formula as MathML; `display` is inline or block. What cannot be translated is shown as its LaTeX source."""
    formula = html.unescape(latex).strip()
    for pattern, replacement in _SAME:
        formula = pattern.sub(replacement, formula)
    try:
        rendered = convert(formula, display=display)
        # Unknown commands come back as they were, backslash and all, and stray `&` as broken XML.
        if "\\" not in "".join(ElementTree.fromstring(_named(rendered)).itertext()):
            return rendered
    except Exception:
        # The library raises an error of its own for each way in which a formula is malformed.
        pass
    return f'<code class="untranslated-latex">{html.escape(latex)}</code>'


def latex_html(source: str) -> str:
    """An output of type text/latex, with or without its delimiters, as MathML."""
    return mathml(source.strip().strip("$").strip(), "block")


def markdown_html(source: str, **renderer: Any) -> str:
    """Markdown with LaTeX as HTML with MathML; `renderer` are settings of nbconvert's renderer."""
    return MarkdownWithMath(renderer=_Renderer(escape=False, **renderer)).render(source)


class _Renderer(IPythonRenderer):
    """nbconvert's renderer of Markdown, with formulas as MathML instead of text for MathJax."""

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        # Notebooks lie beside each other as sources, their pages in a folder each.
        other = re.fullmatch(r"([\w-]+)\.ipynb(#.*)?", url)
        return super().link(text, f"../{other[1]}/{other[1]}.html{other[2] or ''}" if other else url, title)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


class _OfflineExporter(HTMLExporter):
    """nbconvert's exporter with our renderer."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return markdown_html(
            source,
            attachments=context.get("cell", {}).get("attachments", {}),
            embed_images=True,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""),
            anchor_link_text=self.anchor_link_text,
        )


@cache
def _exporter() -> _OfflineExporter:
    """Each exporter compiles its template anew; one stays for the notebooks that follow in this process."""
    exporter = _OfflineExporter(raw_template=_TEMPLATE, embed_images=True)
    exporter.register_filter("latex2html", latex_html)
    exporter.log.setLevel("ERROR")  # it warns of every figure without alternative text
    return exporter


def _static(notebook: NotebookNode) -> NotebookNode:
    """A copy without what only scripts could show."""
    copy = nbformat.from_dict(notebook)
    copy.metadata.pop("widgets", None)
    for cell in copy.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.pop(WIDGET, None) is not None:
                data.clear()
                data["text/html"] = "<p><em>An interactive control: open the notebook in JupyterLab to use it.</em></p>"
            if data.pop("application/javascript", None) is not None and not data:
                data["text/plain"] = "(a script, left out of this page)"
    return copy


def _named(markup: str) -> str:
    """XML knows only five named entities; HTML's others are written as characters."""
    return re.sub(r"&(?!(?:amp|lt|gt|quot|apos|#\w+);)\w+;", lambda entity: html.unescape(entity[0]), markup)
