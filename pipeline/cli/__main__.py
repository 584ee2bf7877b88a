"""`python -m pipeline.cli` is `controlmill`."""

from pipeline.cli import main

if __name__ == "__main__":
    main(prog_name="controlmill")
