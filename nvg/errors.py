"""Every error that nvg raises on purpose; the command line prints its one line and exits with its `exit_code`.

A message names the thing, the value, what is allowed and the way out.
"""

import os

_MOST_OF_MESSAGE = 1000  # of another library or plugin, which may quote all of a file
_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep


class NvgError(Exception):
    """Base of nvg's own errors."""

    exit_code = 1


class ModelNotFoundError(NvgError):
    """No model under that name or at that path."""

    exit_code = 4


class CheckpointError(NvgError):
    """A model's files are damaged, contradictory or of a kind that nvg does not run."""

    exit_code = 4


class ParameterError(NvgError, ValueError):
    """A value from the user is outside what is allowed."""

    exit_code = 2


class UnknownNameError(ParameterError):
    """No sampler, tokenizer, model type or option has that name."""


class PluginError(NvgError):
    """A plugin could not be imported, clashes with another, or breaks its contract."""


class SamplerError(PluginError):
    """A sampler raised, left NaN or removed every candidate; ends the one request that used it."""


class TraceError(NvgError):
    """A file is no trace of `nvg generate --explain`, or a damaged one."""


class AbortedError(NvgError):
    """A step was cut short by `abort()`; what it wrote to the KV cache is void."""

    exit_code = 130


class EngineError(NvgError):
    """The engine stopped on a fault of its own, or was used after `close()`."""


def cause(error: BaseException) -> str:
    """An exception in one line of bounded length, with its type unless the error is nvg's own."""
    name = type(error).__name__
    try:
        text = " ".join(str(error)[: 2 * _MOST_OF_MESSAGE].split())
    except BaseException:  # its own __str__ is faulty, which must not hide what happened
        text = ""
    if len(text) > _MOST_OF_MESSAGE:
        text = text[: _MOST_OF_MESSAGE - 3] + "..."
    return text if isinstance(error, NvgError) and text else f"{name}: {text}" if text else name


def shown(value: object, most: int = 80) -> str:
    """`value` as it is quoted in an error: on one line, of at most `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"<{type(value).__name__}>"
    end = text[-1:] if isinstance(value, str) else ""  # the quotation mark
    return text if len(text) <= most else text[: most - 3 - len(end)] + "..." + end


def fault(error: BaseException) -> str:
    """As `cause`, with the line of a plugin's file at which it came: "KeyError: 'x' (mine.py, line 12)".

    That file is the first outside nvg that was called; of its lines the innermost. With NVG_DEBUG=1 the traceback goes
    to stderr.
    """
    import traceback

    if os.environ.get("NVG_DEBUG") == "1":
        traceback.print_exception(type(error), error, error.__traceback__)
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    foreign = [frame for frame in frames if not frame[0].startswith((_OWN, "<"))]
    if not foreign or isinstance(error, NvgError):
        return cause(error)
    file, line = [frame for frame in foreign if frame[0] == foreign[0][0]][-1]
    return f"{cause(error)} ({os.path.basename(file)}, line {line})"
