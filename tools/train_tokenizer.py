"""`fiber tokenizer`, from the clone: python tools/train_tokenizer.py SHARDS ... --out DIR [--vocab-size N]."""

import sys

from fiber.cli import main as command

if __name__ == "__main__":
    sys.exit(command.main(["tokenizer", *sys.argv[1:]]))
