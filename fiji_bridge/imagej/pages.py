"""The documentation pages of the commands, written from their table.

``python -m fiji_bridge.imagej.pages FOLDER`` writes them, one Markdown file a command.
"""

import shlex
import sys
from html import escape
from pathlib import Path

from fiji_bridge.imagej.commands import COMMANDS, Command, Parameter


def page_name(command: Command) -> str:
    """Give the file name of a command's page."""
    return command.menu.removesuffix("...").replace(" ", "_") + ".md"


def page(command: Command) -> str:
    """Write a command's page: where it is, what it takes and gives, and how to call it from everywhere."""
    title = command.menu.removesuffix("...")
    return f"""# {title}

{command.does}

**Menu:** Plugins ▸ Fiji Bridge ▸ {title}… (after `fiji-bridge install --fiji DIR`)

**Gives:** {command.gives}

| field of the dialog | key | at first | what to put there |
|---|---|---|---|
{"".join(_row(parameter) for parameter in command.parameters)}
## Macro

As ImageJ's recorder writes it; keys left out have the values above.

```
{macro_line(command)}
```

In an ImageJ that Python started (`fiji_bridge.imagej.start()`) the same line works without installing
anything, and `{command.name}` is another name for it.

## Python

```python
import fiji_bridge as fb

{command.python}
```

## Command line

```
{command_line(command)}
```
"""


def macro_line(command: Command) -> str:
    """Give the example as the recorder writes it."""
    return f'run("{command.menu}", "{command.options(command.example)}");'


def command_line(command: Command) -> str:
    """Give the example for a shell."""
    by_key = {parameter.key: parameter for parameter in command.parameters}
    words = ["fiji-bridge", command.cli]
    for key, value in command.example.items():
        option = by_key[key].cli
        if option is not None:
            words += [*([option] if option else []), f"{value:.15g}" if isinstance(value, float) else value]
    return shlex.join(words)


def help_html(command: Command) -> str:
    """Write what the Help button of a command's dialog shows."""
    rows = "".join(
        f"<p><b>{escape(p.label.replace('_', ' '))}</b><br>{escape(p.help)}</p>" for p in command.parameters
    )
    return f"<html><p>{escape(command.does)}</p><p>{escape(command.gives)}</p>{rows}</html>"


def _row(parameter: Parameter) -> str:
    label = parameter.label.replace("_", " ")
    default = f"{parameter.default:g}" if isinstance(parameter.default, float) else parameter.default
    what = parameter.help + (f" One of {', '.join(parameter.choices)}." if parameter.choices else "")
    return f"| {label} | `{parameter.key}` | {default or 'empty'} | {what} |\n"


def write_pages(folder: Path) -> list[Path]:
    """Write the page of every command into `folder` and say where."""
    written = []
    for command in COMMANDS:
        path = folder / page_name(command)
        path.write_text(page(command), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    for written in write_pages(Path(sys.argv[1])):
        print(written)
