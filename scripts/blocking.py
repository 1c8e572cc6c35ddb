"""Writes client/holdfast/blocking.py, the blocking client, from the asyncio client in client/holdfast/client.py.

Run `make client` after a change of the asyncio client's methods; a test holds one to the other.
"""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "client/holdfast"
SOURCE, MADE = PACKAGE / "client.py", PACKAGE / "blocking.py"

HEAD = '''"""The Python API without asyncio: typed, with errors that say what to do.

    with Client("127.0.0.1:7070") as client:
        job = client.create_job(spec)
        for job in client.watch_job(job.id):
            print(job.reason)

Every method raises holdfast.errors.HoldfastError or one of its kinds. Written by `make client`.
"""
'''
CLASS = '''
class Client(BlockingCalls):
    """A connection to one coordinator: `host:port`, or `unix:/path`. Threads may share it.

    Iterators end their calls when they are closed or dropped.
    """
'''
Method = ast.FunctionDef | ast.AsyncFunctionDef


def generated() -> str:
    """The module, as it is to be."""
    tree = ast.parse(SOURCE.read_text())
    found = methods(tree)
    body = "\n\n".join(blocking(method) for method in found)
    head = [HEAD, *imports(tree, found), "from holdfast.blocking_calls import BlockingCalls", CLASS]
    return formatted("\n".join([*head, body, ""]))


def methods(tree: ast.Module) -> list[Method]:
    """The public ones; to close a client is BlockingCalls' business."""
    (client,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Client")
    return [
        node
        for node in client.body
        if isinstance(node, ast.AsyncFunctionDef) or (isinstance(node, ast.FunctionDef) and iterates(node))
        if not node.name.startswith("_") and node.name != "close"
    ]


def iterates(method: Method) -> bool:
    """Whether it gives one thing after another."""
    return method.returns is not None and ast.unparse(method.returns).startswith("AsyncIterator[")


def blocking(method: Method) -> str:
    """The blocking twin of a method."""
    assert method.returns is not None, f"{method.name} says not what it returns"
    gives = ast.unparse(method.returns)
    call = f"self._client.{method.name}({arguments(method.args)})"
    if iterates(method):
        gives = f"Generator[{gives.removeprefix('AsyncIterator[').removesuffix(']')}, None, None]"
        does = f"return self._iterate({call})"
    elif gives == "None":
        does = f"self._run({call})"
    else:
        does = f"return self._run({call})"
    told = ast.get_docstring(method, clean=False)
    head = f"    def {method.name}({ast.unparse(method.args)}) -> {gives}:"
    return "\n".join([head, f'        """{told}"""', f"        {does}"])


def arguments(of: ast.arguments) -> str:
    """Those of a call that passes on what a method was given."""
    assert of.vararg is None, "no client method takes *args"
    assert of.kwarg is None, "no client method takes **kwargs"
    positional = [argument.arg for argument in (*of.posonlyargs, *of.args)][1:]
    return ", ".join([*positional, *(f"{argument.arg}={argument.arg}" for argument in of.kwonlyargs)])


def imports(tree: ast.Module, found: list[Method]) -> list[str]:
    """The imports of what the signatures name."""
    signatures = [part for method in found for part in (method.args, method.returns) if part is not None]
    used = {node.id for part in signatures for node in ast.walk(part) if isinstance(node, ast.Name)}
    lines = ["from collections.abc import Generator"]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names = [name.name for name in node.names if name.name in used - {"AsyncIterator"}]
            if names:
                lines.append(f"from {node.module} import {', '.join(names)}")
    own = sorted(used & {name for node in tree.body for name in defined(node)})
    return [*lines, f"from holdfast.client import {', '.join(own)}"] if own else lines


def defined(node: ast.stmt) -> list[str]:
    """What a statement of a module gives a name."""
    if isinstance(node, ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def formatted(text: str) -> str:
    """The text in the house style, its imports merged and in order."""
    ruff = [Path(sys.executable).with_name("ruff")]
    name = ["--stdin-filename", MADE, "-"]
    for command in (["check", "--quiet", "--fix-only", "--select", "I"], ["format", "--quiet"]):
        done = subprocess.run(
            [*ruff, *command, *name], input=text, capture_output=True, text=True, check=True
        )
        text = done.stdout
    return text


if __name__ == "__main__":
    MADE.write_text(generated())
