"""python -m kappaface_dist: the command `kappaface`."""

from kappaface_dist.console import main

if __name__ == "__main__":
    main()
