"""No password, key or token in what is shown, sent or written down; ordinary texts and URLs stay as they are."""

from __future__ import annotations

import io
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cluster import masking
from cluster.errors import UserError
from cluster.identity import identity
from cluster.masking import (
    guard_logs,
    login_of,
    masked,
    masked_all,
    put_away,
    put_away_all,
    taken_out,
    without_secrets,
)

PW = "Zq7-planted"
ADDRESSES = {
    f"http://ann:{PW}@host:5000/x": "http://***@host:5000/x",
    f"http://{PW}@host/x": "http://***@host/x",
    f"http://ann:{PW}@x@host": "http://***@host",
    f"postgresql+psycopg://ann:{PW}@db/runs": "postgresql+psycopg://***@db/runs",
    f"s3://AKIA:{PW}/a+b/c@bucket/prefix": "s3://***@bucket/prefix",
    f"ray://ann:{PW}@head:10001": "ray://***@head:10001",
    f"ann:{PW}@head:6379": "***@head:6379",
    f"https://b.s3.amazonaws.com/k?X-Amz-Credential={PW}&n=1&X-Amz-Signature={PW}": (
        "https://b.s3.amazonaws.com/k?X-Amz-Credential=***&n=1&X-Amz-Signature=***"
    ),
    f"https://host/x?access_token={PW}&page=2#token={PW}": "https://host/x?access_token=***&page=2#token=***",
    f"postgresql://db/runs?user=ann&password={PW}": "postgresql://db/runs?user=ann&password=***",
}
ORDINARY = [
    "http://127.0.0.1:5000/#/experiments/1/runs/ab@champion",
    "http://[::1]:5000/x@y",
    "models:/tiny@champion",
    "git@github.com:org/repository.git",
    "s3://bucket/a:b@c/*.jsonl?",
    "generated://arithmetic?n=60&seed=1&split=train",
    "sqlite:////srv/ann@work/mlflow.db",
    "file:///srv/a:b@c.jsonl",
    "data/a:b@c.jsonl",
    "max_tokens=5, bos_token = '<s>', tokens=3: 12 tokens",
    "Contact: ann@example.org, at 10:30@home",
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    "web/part-3.jsonl.gz:1042",
    "The password of a model is no password: a secret garden, a token of thanks, the basic idea, and bearer of news.",
    "cookies: 3 kinds; a cookie is a cake, and code=12 is a code",
    "unknown token 'hello', nearest 'hullo'; fields: 'token', 'secret', 'password'",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 of model/9f86d081884c7d659a2f",
    "docker run -u 1000:1000 image --user 1000:1000",
    "https://host/x?page=2&code=404&lang=en&monkey=7#top, 100%25 of a%20b",
    "https://host/x?code=javascript and https://host/x?code=typescript",
    "/srv//ann/x:y, C://work/ann, // see ann@example.org, a//b:c",
    "s3://bucket/key//a:b, step 3: loss 2.5, lr 1e-3: 12 tokens/s",
    "<token> and <|im_start|> are special; -----BEGIN CERTIFICATE----- is not private",
]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has put away, another doesn't know."""
    monkeypatch.setattr(masking, "_whole", {})
    monkeypatch.setattr(masking, "_learnt", set())


@pytest.mark.parametrize(("address", "shown"), ADDRESSES.items())
def test_an_address_is_shown_without_its_secrets_and_dialled_with_them(address: str, shown: str) -> None:
    assert put_away(address) == shown == masked(address)
    assert taken_out(shown) == address
    assert masked(f"Can't read '{address}': away") == f"Can't read '{shown}': away"


@pytest.mark.parametrize("text", ORDINARY)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == text
    assert put_away(text) == text == taken_out(text)


@pytest.mark.parametrize(
    "text",
    [
        f'password = "{PW}"',
        f'password = "{PW}',  # a line of a recipe that is no TOML
        f"--set tracking.token={PW}",
        f"MLFLOW_TRACKING_PASSWORD={PW} tokenmill run",
        f"{{'aws_secret_access_key': '{PW}'}}",
        f"{{'Authorization': 'Bearer {PW}'}}",
        f"Authorization: Basic {PW}",
        f"password: {PW}",
        f"x-api-key: {PW}",
        f"tokenmill run --token={PW} x",
        f"--password {PW}",
        f"DefaultEndpointsProtocol=https;AccountKey={PW};",
        f"secret_key={PW}&refresh_token={PW}",
        f"Server=h;PWD={PW};",
        f'{{"uri": "http:\\/\\/ann:{PW}@host\\/x"}}',
        f"There is no folder http:/ann:{PW}@host/x",  # as pathlib writes it
        f"Cookie: theme=dark; session={PW}",
        f"Set-Cookie: sid={PW}; Path=/; HttpOnly",
        f"{{'Cookie': 'theme=dark; session={PW}', 'Set-Cookie': 'sid={PW}'}}",
        f"cookies={{'sid': '{PW}'}}",
        f"https://host/x;jsessionid={PW}?n=1",
        f"see //ann:{PW}@host.example.org/x",
        f"'\\/\\/ann:{PW}@host.example.org'",
        f"https://host/x?sv=2020&sas={PW}",
        f"https://host/x?sv=2020\\u0026sig={PW}",  # as Go's JSON writes it
        f"https://host/back?code={PW}&state=1",
        f"http%3A%2F%2Fann%3A{PW}%40host%2Fx",
        f"https://host/login?next=http%253A%252F%252Fann%253A{PW}%2540host",
        f"next=%2Fx%3Ftoken%3D{PW}%26page%3D2",
        f"the passphrase '{PW}' is wrong",
        f'password for ann is "{PW}"',
        f"Password for ann: {PW}",
        f"('password', '{PW}'), (b'Authorization', b'Bearer {PW}')",
        f"{{b'password': b'{PW}'}}",
        f"{{:password=>'{PW}'}}",
        f'{{"body": "{{\\"password\\": \\"{PW}\\"}}"}}',
        f'password = """\n{PW}\nand more\n"""',
        f"secret_key = '''\n{PW}\n",
        f"password:\n  {PW}",
        f"curl -u ann:{PW} http://host",
        f"Bearer {PW}",
        f"<Password>{PW}</Password><SecretAccessKey>{PW}</SecretAccessKey>",
        f"-----BEGIN RSA PRIVATE KEY-----\nMIIE\n{PW}\n-----END RSA PRIVATE KEY-----",
        f"a session of eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{PW}",
    ],
)
def test_a_secret_is_known_by_what_stands_before_it(text: str) -> None:
    assert PW not in masked(text)


@pytest.mark.parametrize("key", ["pwd", "secret_key", "api-key", "Authorization", "aws_secret_access_key"])
def test_a_value_under_such_a_key_of_a_recipe_is_never_written(key: str) -> None:
    assert put_away_all({"a": [{key: PW}]}) == {"a": [{key: "***"}]}


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("MLFLOW_TRACKING_PASSWORD", PW, PW),
        ("MLFLOW_TRACKING_TOKEN", PW, PW),
        ("AWS_SECRET_ACCESS_KEY", PW, PW),
        ("AWS_SESSION_TOKEN", PW, PW),
        ("HF_TOKEN", PW, PW),
        ("PREFECT_API_AUTH_STRING", f"admin:{PW}", PW),
        ("PREFECT_API_KEY", PW, PW),
        ("HTTPS_PROXY", f"http://ann:{PW}@proxy:3128", PW),
        ("MLFLOW_TRACKING_URI", "http://ann:p%40ss-word7@host", "p@ss-word7"),
    ],
)
def test_a_secret_of_the_environment_is_known_wherever_it_stands(
    name: str, value: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert secret in masked(f"the library says: {secret}, wrong")
    monkeypatch.setenv(name, value)
    assert masked(f"the library says: {secret}, wrong") == "the library says: ***, wrong"


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_MODE", "token"), ("TOKENIZERS_PARALLELISM", "false"), ("AWS_ACCESS_KEY_ID", "test")]
)
def test_an_ordinary_word_is_no_secret(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert masked(f"in /srv/{value}/x: {value}") == f"in /srv/{value}/x: {value}"


words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters='/?#"<>@:[]%'), min_size=4)


@given(user=words, password=words, host=st.sampled_from(["host", "host:5000", "[::1]:5000", "a.b"]))
def test_no_login_of_any_letters_gets_through(user: str, password: str, host: str) -> None:
    secret, address = f"{user}:{password}", f"http://{user}:{password}@{host}/p"
    if any(c.isspace() for c in secret):
        return
    assert put_away(address) == f"http://***@{host}/p"
    assert secret not in masked(f"Error: {address} is away")
    assert login_of(address) == (f"http://{host}/p", user, password)


def test_a_mask_is_not_dialled() -> None:
    with pytest.raises(UserError, match="never written down"):
        taken_out("http://***@never-given:5000")


def test_a_recipes_values_are_put_away_at_every_depth() -> None:
    values = {"tracking": {"uri": f"http://a:{PW}@h"}, "data": [f"s3://K:{PW}@b"], "api_key": PW, "n": 3}
    assert put_away_all(values) == {
        "tracking": {"uri": "http://***@h"},
        "data": ["s3://***@b"],
        "api_key": "***",
        "n": 3,
    }
    assert PW not in masked(f"learnt: {PW}")
    assert masked_all({"a": [f"http://a:{PW}@h", 1]}) == {"a": ["http://***@h", 1]}


class Config(BaseModel):
    url: str = ""
    urls: tuple[str, ...] = ()


def test_a_password_is_no_part_of_a_fingerprint_and_an_ordinary_url_is() -> None:
    assert identity(Config(url=f"http://a:{PW}@h/x")) == identity(Config(url="http://b:other-one@h/x"))
    for text in ORDINARY:
        assert identity(Config(url=text)) == {"url": text}
        assert without_secrets(text) == text


def test_every_log_record_is_masked_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    guard_logs()
    guard_logs()  # once is enough
    out = io.StringIO()
    logger = logging.Logger("planted")
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    try:
        try:
            raise ConnectionError(f"http://ann:{PW}@host is away")
        except ConnectionError as error:
            raise ValueError(f"again: http://ann:{PW}@host") from error
    except ValueError:
        logger.exception("at %s", f"http://ann:{PW}@host")
    logger.warning("%d of %s", 3, "tokens")
    assert PW not in out.getvalue()
    assert "Traceback" in out.getvalue()
    assert "3 of tokens" in out.getvalue()


def repeated(unit: str, end: str = "", start: str = "") -> str:
    return start + unit * (100_000 // len(unit)) + end


LONG = {
    name: repeated(*parts)
    for name, parts in {
        "a": ("a", "@=:"), "?": ("?", "="), "?a": ("a", "=", "?"), "?a&a": ("?a&a", "="), "a+": ("a+", "://@"),
        "a+a.-": ("a+a.-", "://@"), "x://": ("x://", "@"), "://": ("://", "@"), "a:": ("a:", "@="), "@": ("@", "="),
        "backslash": ("\\", "=@"), "a://u:": ("a://u:", "@h"), "s3:/x:": ("s3:/x:", "@"),
        "http:/a:b": ("http:/a:b", "@x"), "https:\\/\\/": ("https:\\/\\/", "@"), "a://b:c": ("c", "@", "a://b:"),
        "windows": ("a://u:" * 300 + "@a" * 850,), "a:b@": ("a:b@", ":1"), "a:bb@h": ("a:" + "b" * 500 + "@h",),
        "aa:b@": ("a" * 500 + ":b@",), "//a:b": ("//a:b", "@h"), "hosts": ("x.", " ", "a:b@"),
        "hosts-": ("x-.", " ", "a:b@"), "many hosts": ("a:b@" + "x." * 500, "@"), "token:": ("token: ", "="),
        "token%.": ("token%.", "=", "?"), "a-token": ("a-token", "=", "?"), "secret_": ("secret_", "="),
        "spaces": (" ", "=", "password"), "password='": ("password='",), "password=3": ('password="""',),
        "escaped": ("\\", "=", "password"), "escaped value": ("\\", "", "password="),
        "escaped values": ('password=\\"',), "is": ("password is ", '"'), "for": ("password for a", ":"),
        "comma": ("password', 'a",), "--token": (" ", "", "--token"), "authorization": ("authorization: a ",),
        "bearer": ("bearer aaaa",), "bearer ": (" ", "", "bearer"), "basic": ("basic ",), "%2F": ("%2F", "%40"),
        "%25": ("%25", "2F%40"), "token%3D": ("token%3D",), "cookie=": ("cookie=",),
        "cookie:": ("cookie:" + "a" * 99,), "cookie 2": ("a", "=", "cookie:"), "-u": ("-u a ", ":"),
        "-u a": ("a", ":", "-u "), "eyJ-": ("eyJ-", "."), "eyJ.": ("eyJaaaaaaaa.",), "sk-": ("sk-", "!"),
        "sk--": ("-", "!", "sk-" * 1000), "xml": ("<password>", "</"),
        "key": ("-", "", "-----BEGIN PRIVATE KEY-----"), "keys": ("-----BEGIN PRIVATE KEY-----",),
        "code": ("?code=",), "code2": ("?code=a", "1"), "code3": ("a", "", "?code="), "&sig": ("\\u0026sig=",),
        "set": ("set-cookie",),
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_a_strangers_long_text_takes_no_long_time(name: str) -> None:
    """100 kB in a tenth of a second, whatever is repeated: a form whose time is quadratic takes more than ten."""
    begun = time.process_time()
    masked(LONG[name])
    assert time.process_time() - begun < 3
