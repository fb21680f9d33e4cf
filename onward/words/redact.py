"""Secrets, taken out of what is said, stored or given to another process.

What is in doubt counts as a secret: an address that shows too little costs a look at a setting,
one that shows a password costs the password.
"""

from __future__ import annotations

import re

# Up to the last @ where a user and a colon come first, since a password may hold / and @ too;
# without a colon up to the last @ before the path.
_LOGIN = re.compile(
    r"([a-z][\w+.\-]{0,64}://)(?:[^\s/?#:@]{0,200}:\S{0,2000}@|[^\s/]{1,2000}@)", re.IGNORECASE
)

# Whatever the name ends in: `access_token`, `X-Amz-Security-Token`, `DB_PASSWORD`, `accountKey`.
_NAME = (
    r"(?:pass(?:word|wd|phrase)?|pwd|token|secret|credentials?|signature|sig|auth"
    r"|(?:access|account|api|private|shared|secret|storage|encryption|signing)[_\-]?key(?:[_\-]?id)?"
    r"|sharedaccess(?:key|signature))"
)
# A percent-encoded connection string has %3D for = and %3B for ;.
_VALUE = r"(?:\{[^}]*\}|'[^']*'|\"[^\"]*\"|(?:(?!%3B|%26)[^\s&;'\"])+)"
_PAIR = re.compile(rf"([\w.\-]{{0,64}}{_NAME}\s?(?:=|%3D)\s?){_VALUE}", re.IGNORECASE)
_QUOTED_PAIR = re.compile(
    rf"""([\w.\-]{{0,64}}{_NAME}\s*=\s*[rbf]?)(?:'[^']+'|"[^"]+")""", re.IGNORECASE
)
_QUERY_PAIR = re.compile(rf"([?&;][\w.\-]{{0,64}}{_NAME}=)[^\s&;'\"{{}}]+", re.IGNORECASE)
_FIELD = re.compile(  # of JSON, YAML or a Python dictionary
    rf"""(['"][\w.\-]{{0,64}}{_NAME}['"]\s*:\s*)(?:'[^']*'|"(?:[^"\\]|\\.)*")""", re.IGNORECASE
)
_HEADER = re.compile(
    r"(\b(?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:[a-z][\w\-]*)\s+)?[^\s'\",]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer\s+)[\w.~+/=\-]{8,}", re.IGNORECASE)

# Keys that are known by their form, wherever they stand.
_KEYS = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[a-z]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w\-]{16,}|hf_[A-Za-z0-9]{20,}|xox[a-z]-[\w\-]{10,}|sk-[\w\-]{20,}"
    r"|eyJ[\w\-]{8,}\.eyJ[\w\-]{8,}\.[\w\-]+)"
)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)


def redact(text: str) -> str:
    """Return `text` with `***` in place of what may be a secret in it.

    That is user name and password of an address, the value of what is named password, token, key
    or the like, an Authorization header, and keys that are known by their form.

    >>> redact("postgresql://me:pa/ss@w@db:5432/mlflow?sslmode=require&password=x")
    'postgresql://***@db:5432/mlflow?sslmode=require&password=***'
    """
    text = _LOGIN.sub(r"\1***@", text)
    text = _HEADER.sub(r"\1***", text)
    for pattern in (_PAIR, _FIELD):
        text = pattern.sub(r"\1***", text)
    text = _BEARER.sub(r"\1***", text)
    return _PRIVATE_KEY.sub(r"\1***", _KEYS.sub("***", text))


def redact_code(text: str) -> str:
    """Return source code with `***` in place of what may be a secret in it.

    There `password=password` names a variable: only what is written out counts, in quotes or in
    an address. All lines stay, but those of a private key.

    >>> redact_code("login(token=token, password='x')")
    'login(token=token, password=***)'
    """
    lines = _PRIVATE_KEY.sub(r"\1***", text).split("\n")
    lines = [_LOGIN.sub(r"\1***@", line) for line in lines]
    for pattern in (_QUOTED_PAIR, _QUERY_PAIR, _FIELD, _BEARER):
        lines = [pattern.sub(r"\1***", line) for line in lines]
    return "\n".join(_KEYS.sub("***", line) for line in lines)


def without_login(address: str) -> str:
    """Return an address that can be opened and given away: without user name and password.

    >>> without_login("https://me:secret@host/mlflow")
    'https://host/mlflow'
    """
    return redact(_LOGIN.sub(r"\1", address))
