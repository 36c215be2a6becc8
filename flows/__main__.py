"""The command `tokenmill`; `python -m flows` is the same."""

from flows.cli import app


def main() -> None:
    app(prog_name="tokenmill")


if __name__ == "__main__":
    main()
