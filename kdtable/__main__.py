"""``python -m kdtable``."""

from kdtable.cli import main

if __name__ == "__main__":
    main()
