"""Reading TOML files that anybody may have written: of a size and depth that a configuration needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError

_MOST_BYTES = 2**18
_DEEPEST = 16
_PART = r"(?:[\w-]+|\"[^\"\n]*\"|'[^'\n]*')"
_DEEP_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{_DEEPEST}}}", re.MULTILINE)


def load_toml(path: str | Path) -> dict[str, Any]:
    """What a file holds.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{path} has more than {_MOST_BYTES // 1024} KB, which no configuration needs")
        text = content.decode("utf-8-sig")
        if _DEEP_KEY.search(text):  # the time and the memory that reading takes grow with the square of the depth
            raise ConfigError(f"{path} has a key of more than {_DEEPEST} parts, but settings stand in tables of one level")
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path} nests too many brackets in each other, but settings stand in tables of one level") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except ValueError as error:  # such as a number of thousands of digits
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
