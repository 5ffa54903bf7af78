"""The command line: finds the commands, runs the one that was typed, and turns errors into one line and an exit status. What a
command does and shows stands in `commands/`. No other module exits, and torch is imported inside commands only.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnknownOptionError

from dmlcore import commands, console, launch, plugins
from dmlcore.allocation import keep_freed_memory
from dmlcore.commands import display
from dmlcore.commands.installed import command_manager, load_all
from dmlcore.commands.line import CommandLine
from dmlcore.errors import ConfigError, DmlcoreError, nearest, status_of
from dmlcore.flags import new_app
from dmlcore.interruption import handled_by, interrupt
from dmlcore.version import VERSION

_OF_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
"""What the system says of a path that the user named wrongly."""
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|[Ss]torage size calculation overflowed", re.IGNORECASE)
HELP = "Deep metric learning with many losses at once. Installed plugins may add commands."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words behind `dmlcore`; None takes those of the process.

    Returns:
        Exit status: 0 done, 1 failed, 2 the user's mistake, 130 interrupted, 143 and 129 ended by SIGTERM and SIGHUP.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    console.take_any_text()
    try:
        with handled_by(interrupt), plugins.blaming():
            if any("\0" in word for word in words):
                raise ConfigError("a word of the command holds the character 0, which no name and no path can hold")
            with display.shown():
                line = CommandLine(words)
                launch.check_command(line.command)
                return _run(line)
    except KeyboardInterrupt as error:
        status = status_of(error)
        if not launch.is_silent():
            console.fail(str(error) or "interrupted", debug=debug) if status else console.say(str(error))
        return status
    except DmlcoreError as error:
        if not (error.is_of_all and launch.is_silent()):
            console.fail(f"{launch.name_of_process()}{error}" if launch.name_of_process() else error, debug=debug)
        return error.exit_status
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        console.give_up_stdout()
        return 1
    except Exception as error:
        if reason := _why(error):
            console.fail(reason, debug=debug)
            return 2 if isinstance(error, OSError) and error.errno in _OF_PATHS else 1
        console.fail(f"{type(error).__name__}: {error}. `--debug` shows where.", debug=debug)
        return 1


def _why(error: Exception) -> str:
    """What the system refused, in words; empty for an error of another kind."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"cannot use '{os.fsdecode(error.filename)}': {error.strerror}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        text = str(error).partition("\n")[0]
        return f"there is not enough memory ({text or 'no more is said'}). Choose smaller sizes, or another --device"
    return ""


def script() -> None:
    """`main` as a process: exits with its status."""
    keep_freed_memory()
    sys.exit(main())


def _run(line: CommandLine) -> int:
    app = new_app("dmlcore", HELP, version=VERSION)
    _add_commands(app, line)
    try:
        status = app(line.words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise ConfigError(_usage_error(error, line)) from error
    return status if isinstance(status, int) else 0


def _add_commands(app: App, line: CommandLine) -> None:
    """Add dmlcore's own commands and, where the line needs them, those of plugins, by the same hook."""
    builtin = plugins.new_manager()
    for module in commands.modules():
        plugins.register(builtin, module, module.__name__)
    builtin.hook.dmlcore_commands(app=app, line=line)
    if line.command in _names(app):
        return  # plugins are not even looked for, which keeps every command quick
    messages: dict[str, None] = {}

    def failed(owner: str, error: Exception) -> None:
        messages[str(error) if isinstance(error, DmlcoreError) else f"dmlcore_commands of {owner} failed: {error}"] = None

    quick = command_manager(failed)
    plugins.call_each(quick, "dmlcore_commands", failed, app=app, line=line)
    if line.command and line.command not in _names(app):
        # Commands may come from plugins whose source does not name the hook; finding them means to load the other plugins.
        loaded = quick.get_plugins()
        load_all(quick, failed)
        plugins.call_each(quick, "dmlcore_commands", failed, but=loaded, app=app, line=line)
    for message in messages:
        console.say(f"warning: {message}")


def _names(app: App) -> list[str]:
    return [name for name in app if not name.startswith("-")]


def _usage_error(error: CycloptsError, line: CommandLine) -> str:
    where = " ".join(["dmlcore", *(error.command_chain or [])])
    if isinstance(error, UnknownCommandError) and error.app is not None and error.unused_tokens:
        names = _names(error.app)
        near = nearest(error.unused_tokens[0], names)
        hint = f'Did you mean "{near}"?' if near else f"Commands: {', '.join(sorted(names))}."
        return f'Unknown command "{error.unused_tokens[0]}". {hint} See `{where} --help`.'
    if isinstance(error, UnknownOptionError) and (reason := line.why_not_option(error.token.keyword or error.token.value)):
        return reason
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        field = error.argument.field_info
        if field.kind is field.POSITIONAL_OR_KEYWORD:  # a word of its own, which is not called `--run`
            return f"`{where}` needs {field.name.upper()}: {error.argument.parameter.help} See `{where} --help`."
    error.verbose = False
    message = " ".join(str(error).split()).rstrip(".?")
    return f"{message}{'?' if str(error).rstrip().rstrip('.').endswith('?') else '.'} See `{where} --help`."
