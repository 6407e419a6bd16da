"""`python -m tercet`, and what `accelerate launch -m tercet` runs."""

from tercet.cli import main

if __name__ == "__main__":
    main()
