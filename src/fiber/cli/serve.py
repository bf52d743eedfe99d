"""`fiber serve`: a page on this machine to try a model by hand."""

import argparse
from typing import NoReturn

from fiber.cli.numbers import real_number, whole_number

DESCRIPTION = """A page on this machine to try a model by hand: drop an image, type a sentence or classes, see boxes,
answers, captions and matches, and what each word looked at:

    fiber serve runs/demo/stage2

It answers this machine alone (127.0.0.1) unless --host says otherwise; then anybody who reaches the machine can use
the model, without a password. Ctrl-C ends it.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("model", metavar="MODEL", help="export folder, run directory or hub id")
    parser.add_argument("--host", default="127.0.0.1", help="the address to answer on (default: %(default)s)")
    parser.add_argument(
        "--port", type=whole_number(0, 65_535), default=7860, help="0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--limit-mb",
        type=real_number(above=0, most=1024),  # a file is held in memory
        default=20.0,
        help="largest image file (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="what is computed in")


def run(arguments: argparse.Namespace) -> NoReturn:
    """Serve until Ctrl-C, then end the process with status 0."""
    import contextlib
    import os
    import signal
    import sys
    from pathlib import Path

    import fiber
    from fiber.serve.asking import SHOWN_VERBS, Asking
    from fiber.serve.server import LOOPBACK, ModelServer

    predictor = fiber.load(arguments.model, arguments.device, arguments.dtype)
    if not set(predictor.tasks) & set(SHOWN_VERBS):
        raise ValueError(f"{arguments.model} can {', '.join(predictor.tasks) or 'nothing'}: no page for that")
    asking = Asking(predictor, Path(arguments.model).name)
    try:
        server = ModelServer(asking, arguments.host, arguments.port, int(arguments.limit_mb * 2**20))
    except OSError as error:
        why = error.strerror or error
        raise OSError(
            f"{arguments.host}:{arguments.port}: {why}; choose another with --port (0: a free one)"
        ) from None
    if arguments.host not in LOOPBACK:
        print(f"anybody who reaches {arguments.host} can use this model: there is no password", file=sys.stderr)
    # Also where a shell has started this in the background, deaf to Ctrl-C.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    print(f"{asking.name}: {server.address}   (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a question that is still computed in C++ while Python ends would abort the process
