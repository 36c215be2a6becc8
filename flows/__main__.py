"""The command `tokenmill`; `python -m flows` is the same."""

from flows import streams
from flows.cli import app


def main() -> None:
    streams.prepare()
    app(prog_name="tokenmill")


if __name__ == "__main__":
    main()
