"""Reads a configuration file: JSON lines in, a Config or every problem out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import UNSET

from tunlb.conf import balance, net, protected, shape, tunnel
from tunlb.conf.errors import ConfigError, Problem, Problems, did_you_mean, one_of, shown
from tunlb.conf.fields import explain, key_path
from tunlb.conf.parsed import Parsed
from tunlb.conf.protection import Acl, Tc
from tunlb.conf.schema import (
    KINDS,
    LATER,
    Config,
    Hook,
    Neigh,
    Port,
    Route,
    Tunlb,
)
from tunlb.conf.service import Dest, DestLine, Service, ServiceLine, vport_of
from tunlb.conf.timeouts import Timeouts
from tunlb.conf.values import parse

DEFAULT_PATH: Final = "/etc/tunlb/tunlb.jsonl"
ENV_PATH: Final = "TUNLB_CONFIG"
ENV_CONTROL: Final = "TUNLB_CONTROL"

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def find(flag: str | None, environ: Mapping[str, str]) -> Path:
    """The file to read: the flag's, else $TUNLB_CONFIG's, else /etc/tunlb/tunlb.jsonl."""
    return Path(flag or environ.get(ENV_PATH) or DEFAULT_PATH)


def control_path(config: Config, environ: Mapping[str, str]) -> str:
    """The control socket's path, which tells the tunlbs of one machine apart: $TUNLB_CONTROL, else
    the file's.
    """
    return environ.get(ENV_CONTROL) or config.tunlb.control


def load(path: str | Path) -> Config:
    """Reads a file. Raises ConfigError with every problem, also when it cannot be read."""
    name = str(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        hint = f"name a file, set ${ENV_PATH}, or write {DEFAULT_PATH}"
        raise ConfigError([Problem(name, 0, "", message, hint)]) from None
    return _load(data, name)


def loads(text: str, name: str = "<string>") -> Config:
    """Reads a text; `name` stands for the file in problems. Raises ConfigError with all of them."""
    return _load(text.encode("utf-8", "surrogatepass"), name)


def _load(data: bytes, name: str) -> Config:
    problems = Problems(name)
    parsed = Parsed()
    for number, text in _texts(problems, data):
        raw = _json(problems, number, text)
        if raw is not None:
            _line(problems, parsed, number, raw)
        else:
            parsed.unreadable = True
    network = net.check(problems, parsed)
    balance.check(problems, parsed, network)
    tunnel.check(problems, parsed, network)
    protected.check(problems, parsed, network)
    if problems.found:
        raise ConfigError(problems.found)
    return _assemble(parsed, name)


def _texts(problems: Problems, data: bytes) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that says something."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode()) + 1
            wrong = f"byte 0x{line[error.start]:02x} is not UTF-8"
            problems.add(number, "", wrong, hint="save the file as UTF-8", column=column)
            continue
        if text.strip() and not text.lstrip().startswith("#"):
            yield number, text


class _RepeatedError(ValueError):
    """A key written twice in one object: which of them counts would be a guess."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedError(next(key for key in keys if keys.count(key) > 1))
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant)


def _json(problems: Problems, number: int, text: str) -> dict[str, Any] | None:
    """The object on a line, or None when there is none."""
    try:
        value = _DECODER.decode(text.rstrip("\r"))
    except json.JSONDecodeError as error:
        hint = ""
        if error.pos and error.msg == "Extra data":
            hint = "one object a line"
        elif "{" in text and "}" not in text:
            hint = "an object ends on the line it begins on"
        problems.add(number, "", f"not JSON: {error.msg}", hint=hint, column=error.colno)
    except _RepeatedError as error:
        problems.add(number, key_path("$", str(error)), "written twice", hint="remove one of them")
    except RecursionError:
        problems.add(number, "", "not JSON that can be read: nested too deeply")
    except ValueError as error:
        problems.add(number, "", f"not JSON: {error}")
    else:
        if isinstance(value, dict):
            return value
        problems.add(
            number,
            "",
            f"{shown(value)} is not an object",
            expected='{"kind": ..., ...} on each line',
        )
    return None


def _line(problems: Problems, parsed: Parsed, number: int, raw: dict[str, Any]) -> None:
    """Reads one object as its kind and files it, or adds what is wrong with it."""
    kind = raw.get("kind")
    struct = KINDS.get(kind) if isinstance(kind, str) else None
    if struct is None or not isinstance(kind, str):
        _wrong_kind(problems, number, raw)
        parsed.unreadable = True
        return
    planned = _planned(problems, number, kind, raw)
    try:
        line = msgspec.convert(raw, struct, dec_hook=parse)
    except msgspec.ValidationError:
        rest = {key: value for key, value in raw.items() if key not in planned}
        explain(problems, number, struct, rest, skip=planned)
    else:
        if not planned:
            parsed.add(problems, number, kind, line)
            return
    parsed.add_broken(problems, number, kind, raw)


def _planned(problems: Problems, number: int, kind: str, raw: dict[str, Any]) -> frozenset[str]:
    """The keys whose value waits for a later release, each of which is a problem."""
    found = [later for later in LATER.get(kind, ()) if later.planned(raw.get(later.key))]
    for later in found:
        message = f"{shown(raw[later.key])} is not supported in this release"
        problems.add(number, f"$.{later.key}", message, expected=later.accepted)
    return frozenset(later.key for later in found)


def _wrong_kind(problems: Problems, number: int, raw: dict[str, Any]) -> None:
    if "kind" not in raw:
        message, hint = "missing", ""
    else:
        message, hint = f"{shown(raw['kind'])} is not a kind", did_you_mean(raw["kind"], KINDS)
    problems.add(number, "$.kind", message, expected=one_of(KINDS), hint=hint)


def _assemble(parsed: Parsed, name: str) -> Config:
    dests: dict[str, list[DestLine]] = {}
    for dest in parsed.of(DestLine):
        dests.setdefault(dest.service, []).append(dest)
    return Config(
        source=name,
        tunlb=next(iter(parsed.of(Tunlb)), Tunlb()),
        ports=tuple(parsed.of(Port)),
        routes=tuple(parsed.of(Route)),
        neighs=tuple(parsed.of(Neigh)),
        services=tuple(_service(line, dests.get(line.name, [])) for line in parsed.of(ServiceLine)),
        timeouts=next(iter(parsed.of(Timeouts)), Timeouts()),
        hooks=tuple(parsed.of(Hook)),
        acls=tuple(parsed.of(Acl)),
        tcs=tuple(parsed.of(Tc)),
    )


def _service(line: ServiceLine, dests: list[DestLine]) -> Service:
    same = {key: getattr(line, key) for key in Service.__struct_fields__ if key != "dests"}
    same["scheduler"] = str(line.scheduler)
    same["vport"] = vport_of(line)
    return Service(
        **same,
        dests=shape.implied(line)
        + tuple(
            Dest(
                service=dest.service,
                daddr=dest.daddr,
                dport=dest.dport,
                weight=dest.weight,
                fwdmode=line.fwdmode if dest.fwdmode is UNSET else dest.fwdmode,
                max_conn=dest.max_conn,
                tunnel=line.tunnel if dest.tunnel is UNSET else dest.tunnel,
                min_conn=dest.min_conn,
            )
            for dest in dests
        ),
    )
