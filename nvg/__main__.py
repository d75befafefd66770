"""`python -m nvg` and the console script: small, so that there is hardly a moment at which Ctrl-C shows a traceback."""

import signal


def main() -> None:
    """Run the command line; until it is imported, Ctrl-C ends the process without a word."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nvg import cli

    signal.signal(signal.SIGINT, handler)
    cli.main()


if __name__ == "__main__":
    main()
