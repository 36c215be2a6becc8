"""How a secret looks in a text: what stands before it, and where it ends.

    scheme://LOGIN@host   //user:PASSWORD@host   user:PASSWORD@host:port      logins
    ?token=VALUE  &sig=VALUE  token%3DVALUE                                   parameters of an address
    password = "VALUE"  'api_key': b'VALUE'  passphrase 'VALUE'               assignments, in any notation
    Authorization: VALUE  Cookie: VALUE  -u user:VALUE                        headers and command lines
    hf_…  AKIA…  eyJ….….…  -----BEGIN PRIVATE KEY-----                        secrets that tell of themselves

Time is linear in the text, whoever wrote it: every form begins at a mark that its own run of characters can't hold, or
its run is short.
"""

from __future__ import annotations

import bisect
import re

MASK = "***"
# With one slash it is what pathlib has made of an address (models:/NAME@ALIAS is none).
SCHEME = (
    r"(?:[A-Za-z][A-Za-z0-9+.-]{0,30}:(?:\\?/){2}"
    r"|\b(?:https?|s3|ftp|ray|postgresql|mysql|mssql)(?:\+\w{1,30})?:/(?!/))"
)
PARAMETER = (
    r"(?:[\w.%-]*(?:passw(?:or)?d|passphrase|pwd|secret|signature|credential|token(?![a-z])|api[_-]?key"
    r"|access[_-]?key(?:[_-]?id)?|authorization)[\w.-]*|sig|sas|key|auth)"
)
_PASSWORD = r"(?:passw(?:or)?ds?|passphrase)"
_ASSIGNED = (
    rf"(?:{_PASSWORD}|(?-i:pwd)|(?<=;)pwd|secret|(?:secret[_-])?access[_-]?key(?:[_-]?id)?|api[_-]?key"
    r"|(?:private|secret|account)[_-]?key|(?:auth|access|api|security|session|tracking|hf|bearer|id|refresh)[_-]?token"
    r"|(?:(?<![\w-])|(?<=--))token|credentials?|auth[_-]string|(?:j|php)sess(?:ion)?id|set-cookie)"
)
_HOST = re.compile(r"(?:localhost|\[[0-9A-Fa-f:]+\]|\d+\.\d+\.\d+\.\d+|[\w-]+(?:\.[\w-]+)*(?=:\d))")
_AFTER_SLASHES = re.compile(r"[\w\[]")
_VALUE = (
    r'(?:(?<!\w)[brfu])?(?:"""(?:[^"]|"(?!""))*(?:""")?|\'\'\'(?:[^\']|\'(?!\'\'))*(?:\'\'\')?'
    r'|(?P<escaped>\\+["\']).*?(?:(?P=escaped)|$)|"[^"\n]*"?|\'[^\'\n]*\'?|[^\s,;&)}\]"\'\\]+)'
)
# Read backwards from an @, so that each stretch between two of them is read once: password, user, what is before it.
_LOGIN_BACKWARDS = re.compile(r"@([^\s:/@'\"]+):([^\s:/@'\"=,()\[\]]+)(//|/\\/\\)?(?![\w/@.:-])")
_LOGIN_WITH_SLASHES = re.compile(rf'({SCHEME})[^\s/?#"<>:@\[\]]+:(?!\d{{1,5}}(?:[/?#]|$))')
_AT_A_HOST = re.compile(r"@(?=[\w\[])")
_END_OF_ADDRESS = re.compile(r'[\s"<>]')
_LONGEST_LOGIN = 2000

_SCHEME_LOGIN = re.compile(rf'({SCHEME})[^\s/?#"<>]*@')
_PARAMETERS = re.compile(rf"(?i)((?:[?&#;]|\\u0026){PARAMETER}=)[^\s&#\"'<>;\\]+")
# (what a text must have, in lower case, for a look to be worth it; the form; what becomes of it)
_FORMS = tuple(
    (needle, re.compile(pattern), mask)
    for needle, pattern, mask in (
        # An address within an address.
        ("40", r"(?i)(%(?:25){0,3}2F%(?:25){0,3}2F)(?:(?!%(?:25){0,3}(?:2F|3F|23))[^\s\"'<>/?#&@])*%(?:25){0,3}40",
         rf"\1{MASK}%40"),
        ("3d",
         rf"(?i)((?:{_ASSIGNED}|(?<=%26|%3F)(?:token|sig|sas))%(?:25){{0,3}}3D)(?:(?!%(?:25){{0,3}}26)[^\s&#\"'<>;])+",
         rf"\1{MASK}"),
        # OAuth's; elsewhere a code is an ordinary value, also in an address that names data.
        ("code=", r"(?i)([?&;]code=)(?=[^\s?&#;\"'<>\d]*\d)[^\s?&#;\"'<>]{8,}", rf"\1{MASK}"),
        # A header's many cookies.
        ("cookie", r"(?i)(cookies?\\*[\"']?\s*(?:[:=]|,\s*b?(?=[\"']))\s*\\*[\"'{]?)(?=[^\s=:;,]{1,100}[=:])[^\n\"]+",
         rf"\1{MASK}"),
        ("=", rf"(?i)({_ASSIGNED}(?:\\*[\"'])?\s*=>?\s*){_VALUE}", rf"\1{MASK}"),
        (":", rf"(?i)({_ASSIGNED}\\*[\"']\s*:\s*){_VALUE}", rf"\1{MASK}"),
        (",",
         rf"(?i)((?:{_ASSIGNED}|authorization)[\"']\s*,\s*b?)(?=[\"'][^\"'\n]*\d)(?:\"[^\"\n]{{6,}}\"|'[^'\n]{{6,}}')",
         rf"\1{MASK}"),
        # In prose.
        ("pass",
         rf"(?i)({_PASSWORD}(?:\s+(?:is|was|for|of)\b[^\n\"']{{0,60}})?\s+)(?:\"[^\"\n]{{4,}}\"|'[^'\n]{{4,}}')",
         rf"\1{MASK}"),
        ("--", r"(?i)(--(?:password|passwd|passphrase|token|secret|api-key)\s+[\"']?)[^\s\"']+", rf"\1{MASK}"),
        ("-u", r"((?<!\S)(?:-u|--(?:proxy-)?user)[\s=]+[\"']?[^\s:\"'/]{1,100}:)(?!\d+(?:\s|$))[^\s\"'/]+",
         rf"\1{MASK}"),
        ("authorization", r"(?i)(authorization\\*[\"']?\s*[:=]\s*\\*[\"']?)(?:\w[\w-]*\s+)?[^\s\"',\\]+", rf"\1{MASK}"),
        ("basic", r"(?i)\b(basic\s+)[A-Za-z0-9+/=._~-]{16,}", rf"\1{MASK}"),
        ("bearer", r"(?i)\b(bearer\s+)(?:[A-Za-z0-9+/=._~-]{16,}|(?=[a-z+/=._~-]{0,16}\d)[A-Za-z0-9+/=._~-]{8,})",
         rf"\1{MASK}"),
        ("</", r"(?i)(<\w{0,20}(?:password|passphrase|secret(?:access)?key|sessiontoken)>)[^<\n]+(?=</)", rf"\1{MASK}"),
        ("private key", r"(-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----)(?:[^-]|-(?!----END ))*", rf"\1{MASK}"),
        ("eyj", r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}", MASK),
        ("_", r"\b(?:hf|ghp|gho|pnu|pnb)_[A-Za-z0-9]{20,}\b|\bgithub_pat_\w{20,}", MASK),
        ("ia", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", MASK),
        ("-", r"\b(?:sk-[\w-]{32,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{20,})\b", MASK),
        # As YAML and a header write it; a word of prose after a colon is no secret, one with a digit may be.
        (":", rf"(?i)((?:{_ASSIGNED}|{_PASSWORD} for [^\s:]{{1,64}}):\s*)(?=[^\s,;]{{0,80}}\d)[^\s,;\"'*]{{8,}}",
         rf"\1{MASK}"),
    )
)  # fmt: skip


def everything(text: str) -> str:
    """The text with all that looks like a secret masked."""
    text = parameters(logins(text))
    if "@" in text:
        text = bare_logins(text)
    lower = text.lower()
    for needle, pattern, mask in _FORMS:
        if needle in lower:
            text = pattern.sub(mask, text)
    return text


def logins(text: str) -> str:
    """Those of addresses with a scheme."""
    if "@" not in text:
        return text
    return _logins_with_slashes(_SCHEME_LOGIN.sub(rf"\1{MASK}@", text))


def parameters(text: str) -> str:
    """Those of an address."""
    return _PARAMETERS.sub(rf"\1{MASK}", text) if "=" in text else text


def bare_logins(text: str) -> str:
    """Those before a host that no scheme tells of: HOST:PORT, an IP address, localhost, or any after two slashes."""

    def masked(found: re.Match[str]) -> str:
        host = len(text) - found.start()
        if not (_AFTER_SLASHES if found[3] else _HOST).match(text, host):
            return found[0]
        return f"@{MASK}{found[3] or ''}"

    return _LOGIN_BACKWARDS.sub(masked, text[::-1])[::-1]


def _logins_with_slashes(text: str) -> str:
    """A secret key of AWS may have slashes, which a URL should have quoted; host:5000/…@… is no login."""
    ats: list[int] = []
    ends: list[int] = []
    parts: list[str] = []
    done = 0
    for found in _LOGIN_WITH_SLASHES.finditer(text):
        if not ends:
            ats = [m.start() for m in _AT_A_HOST.finditer(text)]
            ends = [*(m.start() for m in _END_OF_ADDRESS.finditer(text)), len(text)]
        begin = found.end()
        end = min(begin + _LONGEST_LOGIN, ends[bisect.bisect_left(ends, begin)])
        last = bisect.bisect_right(ats, end) - 1  # the last @ of the run that begins there
        if last >= 0 and ats[last] >= begin and found.start() >= done:
            parts += [text[done : found.start()], found[1], MASK]
            done = ats[last]
    return "".join(parts) + text[done:]
